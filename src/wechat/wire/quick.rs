//! The usual answer of a batch, and the usual page of the follower list, read in one pass without building a tree.
//!
//! Details are most of what WeChat ever says to this house: 400 bytes a person. What is written exactly as usual is taken
//! here; anything else (an escape, a null, a number with a point, an errcode) gives `None` and goes the careful way, so
//! that whatever is taken here is what the careful reader would have read.

use crate::domain::Texts;
use crate::wechat::profiles::{ProfileRow, Profiles};

/// A number of at most so many digits fits 64 bits.
const MOST_DIGITS: usize = 18;
/// The people of a whole batch.
const USUAL: usize = 100;
/// The openids of a whole page, and how long they are.
const FULL_PAGE: usize = 10_000;
const USUAL_ID_BYTES: usize = 28;

/// A page of the follower list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub total: Option<i64>,
    pub count: Option<i64>,
    /// Trimmed, without blanks.
    pub openids: Texts,
    /// With the blank ones.
    pub listed: usize,
    pub next_openid: Option<String>,
}

/// `{"total":…,"count":…,"data":{"openid":[…]},"next_openid":"…"}`, in whatever order, with nothing unusual in it.
pub fn page(body: &[u8]) -> Option<Page> {
    let mut cursor = Cursor::over(body)?;
    let (mut page, mut seen) = (Page::default(), [false; 4]);
    cursor.eat(b'{')?;
    loop {
        let key = cursor.text()?;
        let place = ["total", "count", "data", "next_openid"].iter().position(|name| *name == key)?;
        if std::mem::replace(&mut seen[place], true) {
            return None;
        }
        cursor.eat(b':')?;
        match place {
            0 => page.total = cursor.number_or_text()?,
            1 => page.count = cursor.number_or_text()?,
            2 => (page.openids, page.listed) = cursor.ids()?,
            _ => page.next_openid = filled(trimmed(cursor.text()?)).map(str::to_owned),
        }
        if cursor.eat(b',').is_none() {
            break;
        }
    }
    cursor.eat(b'}')?;
    cursor.is_at_end().then_some(page)
}

/// `{"user_info_list":[…]}` with nothing unusual in it.
pub fn profiles(body: &[u8]) -> Option<Profiles> {
    let mut cursor = Cursor::over(body)?;
    cursor.eat(b'{')?;
    (cursor.text()? == "user_info_list").then_some(())?;
    cursor.eat(b':')?;
    cursor.eat(b'[')?;
    let mut profiles = Profiles::with_capacity(USUAL);
    let mut layout = Layout::new();
    if cursor.eat(b']').is_none() {
        loop {
            profiles.push_row(&cursor.person(&mut layout)?);
            if cursor.eat(b',').is_none() {
                break;
            }
        }
        cursor.eat(b']')?;
    }
    cursor.eat(b'}')?;
    cursor.is_at_end().then_some(profiles)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

/// What a key says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Openid,
    Unionid,
    Subscribe,
    SubscribeTime,
    SubscribeScene,
    QrScene,
    QrSceneStr,
    TagidList,
    Language,
    Remark,
    Groupid,
    Other,
}

impl Field {
    /// `None`: not for this reader.
    fn of(key: &str) -> Option<Self> {
        Some(match key {
            "openid" => Self::Openid,
            "unionid" => Self::Unionid,
            "subscribe" => Self::Subscribe,
            "subscribe_time" => Self::SubscribeTime,
            "subscribe_scene" => Self::SubscribeScene,
            "qr_scene" => Self::QrScene,
            "qr_scene_str" => Self::QrSceneStr,
            "tagid_list" => Self::TagidList,
            "language" => Self::Language,
            "remark" => Self::Remark,
            "groupid" => Self::Groupid,
            "errcode" | "errmsg" => return None,
            _ => Self::Other,
        })
    }
}

/// The keys of the person before, as they are written up to their value: the next one's are the same, most likely.
type Layout<'a> = Vec<(&'a str, Field)>;

impl<'a> Cursor<'a> {
    /// A body of texts that end at the next quote and are what they say: without a backslash or a control character.
    fn over(body: &'a [u8]) -> Option<Self> {
        let is_odd = |odd: bool, byte: &u8| odd | (*byte < 0x20) | (*byte == b'\\');
        if body.chunks(256).any(|chunk| chunk.iter().fold(false, is_odd)) {
            return None;
        }
        Some(Self { text: std::str::from_utf8(body).ok()?, at: 0 })
    }

    /// `{"openid":[…]}`: the ids that are not blank, and how many stand there.
    fn ids(&mut self) -> Option<(Texts, usize)> {
        let (mut ids, mut listed) = (Texts::with_capacity(FULL_PAGE, USUAL_ID_BYTES), 0);
        self.eat(b'{')?;
        (self.text()? == "openid").then_some(())?;
        self.eat(b':')?;
        self.eat(b'[')?;
        if self.eat(b']').is_none() {
            loop {
                let id = trimmed(self.text()?);
                if !id.is_empty() {
                    ids.push(Some(id));
                }
                listed += 1;
                if self.eat(b',').is_none() {
                    break;
                }
            }
            self.eat(b']')?;
        }
        self.eat(b'}')?;
        Some((ids, listed))
    }

    fn person(&mut self, layout: &mut Layout<'a>) -> Option<ProfileRow<'a>> {
        let mut row = ProfileRow::default();
        let mut seen: u16 = 0;
        self.eat(b'{')?;
        if self.eat(b'}').is_some() {
            return Some(row);
        }
        for place in 0.. {
            let field = self.key(place, layout)?;
            match field {
                Field::Openid => row.openid = filled(trimmed(self.text()?)),
                Field::Unionid => row.unionid = filled(trimmed(self.text()?)),
                Field::Subscribe => row.subscribe = self.number_or_text()?,
                Field::SubscribeTime => row.subscribe_time = self.number_or_text()?,
                Field::SubscribeScene => row.subscribe_scene = filled(self.text()?),
                Field::QrScene => row.qr_scene = self.number_or_text()?,
                Field::QrSceneStr => row.qr_scene_str = filled(self.text()?),
                Field::TagidList => row.tagid_list = Some(self.numbers()?),
                Field::Language => row.language = filled(self.text()?),
                Field::Remark => row.remark = filled(self.text()?),
                Field::Groupid => row.groupid = self.number_or_text()?,
                Field::Other => self.skip()?,
            }
            // A field may stand once; what is not read may stand as often as it likes.
            let bit = if field == Field::Other { 0 } else { 1_u16 << (field as u16) };
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
            if self.eat(b',').is_none() {
                break;
            }
        }
        self.eat(b'}')?;
        Some(row)
    }

    /// The key at `place` of a person, with its colon.
    fn key(&mut self, place: usize, layout: &mut Layout<'a>) -> Option<Field> {
        if let Some((written, field)) = layout.get(place)
            && self.text[self.at..].starts_with(written)
        {
            self.at += written.len();
            return Some(*field);
        }
        let start = self.at;
        let field = Field::of(self.text()?)?;
        self.eat(b':')?;
        layout.truncate(place);
        layout.push((&self.text[start..self.at], field));
        Some(field)
    }

    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn is_at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    fn text(&mut self) -> Option<&'a str> {
        self.eat(b'"')?;
        let start = self.at;
        let length = next_quote(&self.text.as_bytes()[start..])?;
        self.at = start + length + 1;
        Some(&self.text[start..start + length])
    }

    /// Digits as JSON writes them, with the number they are.
    fn digits(&mut self) -> Option<i64> {
        let digits = &self.text.as_bytes()[self.at..];
        let length = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        if length == 0 || length > MOST_DIGITS || (length > 1 && digits[0] == b'0') {
            return None;
        }
        self.at += length;
        Some(digits[..length].iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')))
    }

    fn number_or_text(&mut self) -> Option<Option<i64>> {
        match self.peek()? {
            b'"' => Some(self.text()?.trim().parse().ok()),
            b'-' => {
                self.at += 1;
                self.digits().map(|number| Some(-number))
            }
            _ => self.digits().map(Some),
        }
    }

    /// A text or a number that is not looked at.
    fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.text().map(|_| ()),
            _ => self.number_or_text().map(|_| ()),
        }
    }

    /// A list of numbers without blanks, as it is written.
    fn numbers(&mut self) -> Option<&'a str> {
        self.eat(b'[')?;
        let start = self.at - 1;
        let bytes = self.text.as_bytes();
        if bytes.get(self.at) != Some(&b']') {
            loop {
                self.digits()?;
                if bytes.get(self.at) != Some(&b',') {
                    break;
                }
                self.at += 1;
            }
        }
        (bytes.get(self.at) == Some(&b']')).then(|| self.at += 1)?;
        Some(&self.text[start..self.at])
    }
}

/// Where the next quote is: eight bytes at a time, of which one is a quote when taking it away leaves a zero.
fn next_quote(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const QUOTES: u64 = u64::from_le_bytes([b'"'; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    for (place, word) in words.iter().enumerate() {
        let without = u64::from_le_bytes(*word) ^ QUOTES;
        let zeros = without.wrapping_sub(ONES) & !without & (ONES << 7);
        if zeros != 0 {
            return Some(place * 8 + usize::try_from(zeros.trailing_zeros()).unwrap_or(0) / 8);
        }
    }
    let place = rest.iter().position(|byte| *byte == b'"')?;
    Some(words.len() * 8 + place)
}

/// Without surrounding white space, of which there is hardly ever any.
fn trimmed(text: &str) -> &str {
    match text.as_bytes() {
        [first, .., last] if first.is_ascii_graphic() && last.is_ascii_graphic() => text,
        _ => text.trim(),
    }
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
