//! Message templates of the simulated account, and the rules their fields hold values to.

use std::collections::BTreeMap;

/// The id of the first template of [`Template::samples`]: 商品, 时间, 金额.
pub const SALE_TEMPLATE_ID: &str = "ngqIpbwh8bUfcSsECmogfXcV14J0tQlEpBO27izEYtY";
/// The id of the second: 状态, 单号, 类型.
pub const ORDER_TEMPLATE_ID: &str = "Kq2vXw7LrTn0ZsYbHfDcGjMpAeUoIi3R9t5W1x8Q6zE";

/// A template as the account's owner set it up.
#[derive(Debug, Clone)]
pub struct Template {
    pub template_id: String,
    pub title: String,
    pub primary_industry: String,
    pub deputy_industry: String,
    /// Lines of `label:{{key.DATA}}`.
    pub content: String,
    pub example: String,
    /// For keys of type const: the values that were declared.
    pub declared: BTreeMap<String, Vec<String>>,
    /// Works, but is missing from the list of templates.
    pub unlisted: bool,
}

impl Template {
    /// What a fresh account has.
    pub fn samples() -> Vec<Self> {
        vec![
            Self {
                template_id: SALE_TEMPLATE_ID.to_owned(),
                title: "优惠活动开始通知".to_owned(),
                primary_industry: "商业服务".to_owned(),
                deputy_industry: "电子商务".to_owned(),
                content: "商品:{{thing1.DATA}}\n时间:{{time2.DATA}}\n金额:{{amount3.DATA}}\n".to_owned(),
                example: "商品:秋冬外套\n时间:2026-11-24 10:00\n金额:39.80元\n".to_owned(),
                declared: BTreeMap::new(),
                unlisted: false,
            },
            Self {
                template_id: ORDER_TEMPLATE_ID.to_owned(),
                title: "订单状态提醒".to_owned(),
                primary_industry: "商业服务".to_owned(),
                deputy_industry: "电子商务".to_owned(),
                content: "状态:{{phrase1.DATA}}\n单号:{{character_string2.DATA}}\n类型:{{const3.DATA}}\n".to_owned(),
                example: "状态:已发货\n单号:SF20261124001\n类型:快递\n".to_owned(),
                declared: BTreeMap::from([("const3".to_owned(), vec!["快递".to_owned(), "自提".to_owned()])]),
                unlisted: false,
            },
        ]
    }

    /// The keys that a message must fill, in the order of the content.
    pub fn keys(&self) -> Vec<String> {
        self.content
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split_once(".DATA"))
            .map(|(key, _)| key.trim().to_owned())
            .collect()
    }
}

/// Why a value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Empty,
    Invalid,
}

/// Holds a value to the rule of its key's type.
pub fn check(key: &str, value: &str, declared: Option<&[String]>) -> Result<(), Fault> {
    if value.trim().is_empty() {
        return Err(Fault::Empty);
    }
    let field_type = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let length = value.chars().count();
    let fits = match field_type {
        "thing" => length <= 20,
        "character_string" => length <= 32 && value.is_ascii(),
        "time" => ranges(value, |part| is_moment(part, false)),
        "date" => ranges(value, |part| is_moment(part, true)),
        "amount" => is_amount(value),
        "phone_number" => length <= 17 && value.bytes().all(|b| b.is_ascii_digit() || b" +-()*#".contains(&b)),
        "car_number" => length <= 8,
        "const" => length <= 20 && declared.is_none_or(|values| values.iter().any(|one| one == value)),
        "number" => length <= 32 && value.bytes().all(|b| b.is_ascii_digit() || b".-".contains(&b)),
        "letter" => length <= 32 && value.bytes().all(|b| b.is_ascii_alphabetic()),
        "symbol" => length <= 5 && !value.chars().any(char::is_alphanumeric),
        "name" => length <= if value.is_ascii() { 20 } else { 10 },
        "phrase" => length <= 5 && value.chars().all(is_han),
        _ => length <= 200,
    };
    if fits && !value.chars().any(char::is_control) { Ok(()) } else { Err(Fault::Invalid) }
}

fn is_han(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2ebef}')
}

/// One moment, or two with `~` between.
fn ranges(value: &str, is_one: impl Fn(&str) -> bool) -> bool {
    let mut parts = value.split('~').map(str::trim);
    parts.clone().count() <= 2 && parts.all(is_one)
}

/// A date, a 24-hour time, or both, with a blank between.
fn is_moment(text: &str, needs_date: bool) -> bool {
    match text.split_once(' ') {
        Some((date, time)) => is_date(date) && is_time(time.trim()),
        None => is_date(text) || (!needs_date && is_time(text)),
    }
}

fn is_date(text: &str) -> bool {
    let plain = text.replace(['年', '月', '/', '.'], "-").replace('日', "");
    let mut parts = plain.split('-');
    let year = parts.next().is_some_and(|year| year.len() == 4 && within(year, 1..=9999));
    let month = parts.next().is_some_and(|month| within(month, 1..=12));
    let day = parts.next().is_some_and(|day| within(day, 1..=31));
    year && month && day && parts.next().is_none()
}

fn is_time(text: &str) -> bool {
    let mut parts = text.split([':', '\u{ff1a}']);
    let hour = parts.next().is_some_and(|hour| within(hour, 0..=24));
    let minute = parts.next().is_some_and(|minute| minute.len() == 2 && within(minute, 0..=59));
    let second = parts.next().is_none_or(|second| second.len() == 2 && within(second, 0..=59));
    hour && minute && second && parts.next().is_none()
}

fn within(digits: &str, range: std::ops::RangeInclusive<u32>) -> bool {
    digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse().is_ok_and(|number| range.contains(&number))
}

/// At most one currency sign, ten digits with decimals, perhaps 元 at the end.
fn is_amount(text: &str) -> bool {
    let text = text.strip_prefix(['¥', '\u{ffe5}', '$', '€', '£']).unwrap_or(text);
    let text = text.strip_suffix('元').unwrap_or(text);
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    digits(whole) && digits(decimals) && whole.len() <= 10 && decimals.len() <= 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_name_their_keys_and_their_examples_keep_the_rules() {
        let templates = Template::samples();
        assert_eq!(templates[0].keys(), ["thing1", "time2", "amount3"]);
        for template in &templates {
            assert_eq!(template.template_id.len(), 43);
            for (line, key) in template.example.lines().zip(template.keys()) {
                let (_, value) = line.split_once(':').unwrap();
                assert_eq!(check(&key, value, template.declared.get(&key).map(Vec::as_slice)), Ok(()), "{key}");
            }
        }
    }

    #[test]
    fn each_type_accepts_what_it_should_and_refuses_the_rest() {
        let good = [
            ("thing1", "二十个字以内的商品名称都可以"),
            ("time2", "2026-11-23 09:30"),
            ("time2", "2026年11月23日 9:30~10:30"),
            ("time2", "15:01"),
            ("date1", "2026/11/23"),
            ("amount3", "39.80元"),
            ("amount3", "¥1200"),
            ("phone_number1", "+86-13800138000"),
            ("phrase1", "已发货"),
            ("keyword1", "任何文字"),
        ];
        let bad = [
            ("thing1", "这一个商品名称实在太长了所以超过了二十个字的限制"),
            ("thing1", "两\n行"),
            ("time2", "明天上午"),
            ("time2", "25:00"),
            ("date1", "09:30"),
            ("amount3", "三十元"),
            ("amount3", "12345678901"),
            ("character_string1", "单号1"),
            ("phrase1", "13笔"),
            ("number1", "十二"),
        ];
        good.iter().for_each(|(key, value)| assert_eq!(check(key, value, None), Ok(()), "{key} {value}"));
        bad.iter().for_each(|(key, value)| assert_eq!(check(key, value, None), Err(Fault::Invalid), "{key} {value}"));
        assert_eq!(check("thing1", " ", None), Err(Fault::Empty));
        assert_eq!(check("const3", "无人机", Some(&["快递".to_owned()])), Err(Fault::Invalid));
    }
}
