//! A template message as the bytes that leave: written straight into a buffer, with Chinese as plain UTF-8.

/// One message. Keys of `data` are the template's fields without `.DATA`.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub touser: &'a str,
    pub template_id: &'a str,
    pub url: Option<&'a str>,
    /// App id and page of the mini program to open.
    pub miniprogram: Option<(&'a str, &'a str)>,
    /// The key of the page: `pagepath`, or `path` or `page` for some accounts.
    pub page_key: &'a str,
    /// At most 32 characters of ASCII; WeChat sends one id to one person once in ten minutes.
    pub client_msg_id: &'a str,
    pub data: &'a [(&'a str, &'a str)],
}

impl Message<'_> {
    /// The body of the send.
    pub fn write(&self) -> Vec<u8> {
        let data_bytes: usize = self.data.iter().map(|(key, value)| key.len() + value.len() + 20).sum();
        let mut body = Vec::with_capacity(256 + data_bytes + self.url.map_or(0, str::len));
        body.extend_from_slice(b"{\"touser\":");
        text(&mut body, self.touser);
        body.extend_from_slice(b",\"template_id\":");
        text(&mut body, self.template_id);
        if let Some(url) = self.url {
            body.extend_from_slice(b",\"url\":");
            text(&mut body, url);
        }
        if let Some((app_id, page)) = self.miniprogram {
            body.extend_from_slice(b",\"miniprogram\":{\"appid\":");
            text(&mut body, app_id);
            body.push(b',');
            text(&mut body, self.page_key);
            body.push(b':');
            text(&mut body, page);
            body.push(b'}');
        }
        body.extend_from_slice(b",\"client_msg_id\":");
        text(&mut body, self.client_msg_id);
        body.extend_from_slice(b",\"data\":{");
        for (at, (key, value)) in self.data.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            text(&mut body, key);
            body.extend_from_slice(b":{\"value\":");
            text(&mut body, value);
            body.push(b'}');
        }
        body.extend_from_slice(b"}}");
        body
    }
}

/// A JSON string; `serde_json` escapes what must be and leaves Chinese alone.
fn text(body: &mut Vec<u8>, value: &str) {
    serde_json::to_writer(body, value).expect("text can always be written to memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_plain_utf8_and_reads_back_whole() {
        let body = Message {
            touser: "oUser",
            template_id: "tpl",
            url: Some("https://example.com/?a=1&b=\"2\""),
            miniprogram: Some(("wx1", "pages/index?foo=bar")),
            page_key: "path",
            client_msg_id: "c42-0001",
            data: &[("thing1", "您的订单\\已发货"), ("amount3", "39.80元")],
        }
        .write();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("您的订单"), "Chinese must not be escaped: {text}");
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(read["url"], "https://example.com/?a=1&b=\"2\"");
        assert_eq!(read["miniprogram"]["path"], "pages/index?foo=bar");
        assert_eq!(read["data"]["thing1"]["value"], "您的订单\\已发货");
        assert_eq!(read["client_msg_id"], "c42-0001");
    }

    #[test]
    fn what_is_not_given_is_not_written() {
        let body = Message {
            touser: "o",
            template_id: "t",
            url: None,
            miniprogram: None,
            page_key: "pagepath",
            client_msg_id: "c",
            data: &[],
        }
        .write();
        assert_eq!(body, br#"{"touser":"o","template_id":"t","client_msg_id":"c","data":{}}"#);
    }
}
