//! What a field of a template message may hold, so that a wrong value is found before the first send.
//!
//! A field's key is its type and a number (`thing10`), and the type has a rule. The documented rules are data
//! ([`FieldRules::documented`]) and can be replaced for one type, or narrowed for one field to the values its template
//! allows. Types without a documented rule, and the keys of old templates (`first`, `keyword1`), are held to what is true
//! of every field: not empty, no line breaks or control characters, no emoji. Nothing is cut to fit: a cut changes the meaning.
//! The forms of times, dates and amounts stand in [`forms`].

mod forms;

use std::collections::BTreeMap;

use crate::redact;

/// The alphabet or shape of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Any,
    NoChinese,
    /// Digits, with at most one decimal point.
    Number,
    /// Latin letters.
    Letters,
    /// Neither letters, digits nor Chinese.
    Symbols,
    /// Chinese alone.
    Chinese,
    /// Digits and the signs of telephone numbers.
    PhoneNumber,
    /// Latin letters and digits; the first and the last may be Chinese.
    CarNumber,
    /// `9:30`, with a date before it if wanted, or two of them joined by `~`.
    Time,
    /// `2026-11-23` or `2026年11月23日`, with a time behind it if wanted, or two of them joined by `~`.
    Date,
    /// One currency sign if wanted, digits, decimals if wanted, `元` if wanted.
    Amount,
}

/// The rule of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRule {
    pub form: Form,
    /// Most characters: digits for [`Form::Number`] and [`Form::Amount`] (before the decimal point), no limit for times and dates.
    pub most: Option<usize>,
    /// Most characters of a value without Chinese, where that differs.
    pub most_latin: Option<usize>,
    /// The rule in words, for the message about a value that breaks it.
    pub text: String,
}

/// A value that its field does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}; found {found}")]
pub struct FieldProblem {
    /// The key (`thing1`).
    pub field: String,
    /// What holds for it ("takes at most 20 characters").
    pub rule: String,
    /// The value, cut, with control characters spelled out.
    pub found: String,
}

const NO_CONTROLS: &str = "takes no line breaks or control characters";

/// Holds a rendered page path or address against the one rule that it has.
///
/// # Errors
///
/// That it holds a line break or a control character.
pub fn check_address(name: &str, value: &str) -> Result<(), FieldProblem> {
    if !has_controls(value) {
        return Ok(());
    }
    // Not the value: it often names the person.
    let found = format!("one among {} characters", value.chars().count());
    Err(FieldProblem { field: name.to_owned(), rule: NO_CONTROLS.to_owned(), found })
}

fn has_controls(value: &str) -> bool {
    value.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// The rules of all types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRules {
    types: BTreeMap<String, FieldRule>,
    /// Key → the only values its template takes.
    allowed: BTreeMap<String, Vec<String>>,
}

impl Default for FieldRules {
    fn default() -> Self {
        Self::documented()
    }
}

impl FieldRules {
    /// The rules as WeChat's documentation gives them.
    pub fn documented() -> Self {
        let rule = |form, most, text: &str| FieldRule { form, most, most_latin: None, text: text.to_owned() };
        let types = [
            ("thing", rule(Form::Any, Some(20), "takes at most 20 characters")),
            (
                "character_string",
                rule(Form::NoChinese, Some(32), "takes at most 32 letters, digits or symbols, no Chinese"),
            ),
            (
                "time",
                rule(Form::Time, None, "takes a 24-hour time (9:30), a date and a time, or two of them joined by ~"),
            ),
            (
                "date",
                rule(
                    Form::Date,
                    None,
                    "takes a date (2026-11-23, 2026年11月23日), a date and a time, or two of them joined by ~",
                ),
            ),
            (
                "amount",
                rule(
                    Form::Amount,
                    Some(10),
                    "takes one currency sign, up to 10 digits, decimals, and 元 at the end; only the digits are needed",
                ),
            ),
            ("phone_number", rule(Form::PhoneNumber, Some(17), "takes at most 17 digits and signs")),
            (
                "car_number",
                rule(Form::CarNumber, Some(8), "takes at most 8 letters and digits, Chinese only first and last"),
            ),
            ("const", rule(Form::Any, Some(20), "takes at most 20 characters, of the values approved for it")),
            ("number", rule(Form::Number, Some(32), "takes at most 32 digits")),
            ("letter", rule(Form::Letters, Some(32), "takes at most 32 Latin letters")),
            ("symbol", rule(Form::Symbols, Some(5), "takes at most 5 symbols")),
            ("phrase", rule(Form::Chinese, Some(5), "takes at most 5 Chinese characters and nothing else")),
            (
                "name",
                FieldRule {
                    most_latin: Some(20),
                    ..rule(Form::Any, Some(10), "takes at most 10 characters with Chinese, or 20 without")
                },
            ),
        ];
        Self {
            types: types.into_iter().map(|(name, rule)| (name.to_owned(), rule)).collect(),
            allowed: BTreeMap::new(),
        }
    }

    /// Replaces the rule of a type (`thing`), or adds one.
    pub fn set(&mut self, field_type: &str, rule: FieldRule) {
        self.types.insert(field_type.to_owned(), rule);
    }

    /// The names of the types that have a rule.
    pub fn types(&self) -> impl Iterator<Item = &str> + Clone {
        self.types.keys().map(String::as_str)
    }

    /// The rule of a type (`thing`).
    pub fn of_type(&self, field_type: &str) -> Option<&FieldRule> {
        self.types.get(field_type)
    }

    /// Lets a field (`const3`) hold these values and no others.
    pub fn allow_only(&mut self, field: &str, values: Vec<String>) {
        self.allowed.insert(field.to_owned(), values);
    }

    /// Holds a rendered value against the rules of its field.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks.
    pub fn check(&self, field: &str, value: &str) -> Result<(), FieldProblem> {
        let problem = |rule: &str| {
            Err(FieldProblem { field: field.to_owned(), rule: rule.to_owned(), found: shown(field, value) })
        };
        if value.trim().is_empty() {
            return problem("must not be empty");
        }
        if has_controls(value) {
            return problem(NO_CONTROLS);
        }
        if value.chars().any(is_emoji) {
            return problem("takes no emoji");
        }
        if let Some(allowed) = self.allowed.get(field)
            && !allowed.iter().any(|one| one == value)
        {
            return problem(&format!("takes only {}", allowed.join(", ")));
        }
        match self.types.get(field_type(field)) {
            Some(rule) if !keeps(rule, value) => problem(&rule.text),
            _ => Ok(()),
        }
    }
}

/// The type of a key: `thing10` → `thing`.
pub fn field_type(field: &str) -> &str {
    field.trim_end_matches(|c: char| c.is_ascii_digit())
}

fn keeps(rule: &FieldRule, value: &str) -> bool {
    let most = match rule.most_latin {
        Some(latin) if !value.chars().any(is_chinese) => Some(latin),
        _ => rule.most,
    };
    let fits = |count: usize| most.is_none_or(|most| count <= most);
    let all = |accepted: &dyn Fn(char) -> bool| value.chars().all(accepted) && fits(value.chars().count());
    match rule.form {
        Form::Any => all(&|_| true),
        Form::NoChinese => all(&|c| !is_chinese(c)),
        Form::Letters => all(&|c| c.is_ascii_alphabetic()),
        Form::Symbols => all(&|c| !c.is_alphanumeric()),
        Form::Chinese => all(&is_chinese),
        Form::PhoneNumber => {
            all(&|c| c.is_ascii_digit() || "+-() #*".contains(c)) && value.chars().any(|c| c.is_ascii_digit())
        }
        Form::CarNumber => {
            let last = value.chars().count() - 1;
            let placed =
                |(at, c): (usize, char)| c.is_ascii_alphanumeric() || ((at == 0 || at == last) && is_chinese(c));
            fits(last + 1) && value.chars().enumerate().all(placed)
        }
        Form::Number => {
            let (whole, decimals) = value.split_once('.').unwrap_or((value, "0"));
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits(whole) && digits(decimals) && fits(value.bytes().filter(u8::is_ascii_digit).count())
        }
        Form::Amount => forms::amount_digits(value).is_some_and(fits),
        Form::Time => forms::is_time(value),
        Form::Date => forms::is_date(value),
    }
}

/// Ideographs, with the extensions in use for names.
fn is_chinese(c: char) -> bool {
    matches!(c, '\u{3007}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// What a phone draws as a picture; such a message shows boxes instead. Signs that are text by default (★, ✓, ©) pass.
fn is_emoji(c: char) -> bool {
    matches!(c,
        '\u{1F000}'..='\u{1FAFF}' | '\u{E0020}'..='\u{E007F}' | '\u{FE0F}' | '\u{20E3}'
        | '\u{231A}' | '\u{231B}' | '\u{23E9}'..='\u{23EC}' | '\u{23F0}' | '\u{23F3}' | '\u{25FD}' | '\u{25FE}'
        | '\u{2614}' | '\u{2615}' | '\u{2648}'..='\u{2653}' | '\u{267F}' | '\u{2693}' | '\u{26A1}' | '\u{26AA}' | '\u{26AB}'
        | '\u{26BD}' | '\u{26BE}' | '\u{26C4}' | '\u{26C5}' | '\u{26CE}' | '\u{26D4}' | '\u{26EA}' | '\u{26F2}' | '\u{26F3}'
        | '\u{26F5}' | '\u{26FA}' | '\u{26FD}' | '\u{2705}' | '\u{270A}' | '\u{270B}' | '\u{2728}' | '\u{274C}' | '\u{274E}'
        | '\u{2753}'..='\u{2755}' | '\u{2757}' | '\u{2795}'..='\u{2797}' | '\u{27B0}' | '\u{27BF}' | '\u{2B1B}' | '\u{2B1C}'
        | '\u{2B50}' | '\u{2B55}')
}

/// Enough of a value to find it in the set. A telephone number is somebody's.
fn shown(field: &str, value: &str) -> String {
    const MOST: usize = 24;
    if field_type(field) == "phone_number" {
        return redact::shortened(value);
    }
    let count = value.chars().count();
    let head: String = value.chars().take(MOST).flat_map(char::escape_debug).collect();
    if count > MOST { format!("`{head}…` ({count} characters)") } else { format!("`{head}` ({count} characters)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(field: &str, value: &str) -> bool {
        FieldRules::documented().check(field, value).is_ok()
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        assert!(takes("thing1", &"字".repeat(20)));
        assert!(!takes("thing1", &"字".repeat(21)));
        assert!(takes("name2", &"a".repeat(20)) && !takes("name2", &"a".repeat(21)));
        assert!(takes("name2", &"名".repeat(10)) && !takes("name2", &"名a".repeat(6)));
        assert!(takes("character_string12", &"a1-".repeat(10)) && !takes("character_string12", "订单1"));
    }

    #[test]
    fn a_page_path_takes_no_line_break_and_is_not_shown() {
        assert!(check_address("pagepath or url", "pages/sale?u=oABCDEFGHIJK&n=名").is_ok());
        let problem = check_address("pagepath or url", "pages/sale?u=oABCDEFGHIJK\n").unwrap_err().to_string();
        assert!(problem.contains("line breaks") && !problem.contains("oABCDEFGHIJK"), "{problem}");
    }

    #[test]
    fn times_and_dates_take_the_documented_forms() {
        for time in [
            "9:30",
            "15:01",
            "15:01:59",
            "2019年10月1日 15:01",
            "2026-11-23 09:30",
            "2026/11/23 09:30",
            "09:00~11:30",
            "2026-11-23 09:00~2026-11-24 10:00",
            "2026年11月23日09:30",
        ] {
            assert!(takes("time2", time), "{time}");
        }
        for time in ["", "24:00", "9:5", "soon", "2026-02-30 09:30", "09:00~", "~", "09:00~10:00~11:00", "2026-11-23"] {
            assert!(!takes("time2", time), "{time}");
        }
        for date in
            ["2026-11-23", "2019年10月1日", "2019年10月1日 15:01", "2026-11-23~2026-11-30", "2026-11-23 09:00~11:30"]
        {
            assert!(takes("date3", date), "{date}");
        }
        for date in ["2026-13-01", "09:30", "11-23", "2026-02-30", "2026-11-23T09:30"] {
            assert!(!takes("date3", date), "{date}");
        }
    }

    #[test]
    fn amounts_take_a_sign_digits_and_yuan() {
        for amount in ["8", "¥8.50", "￥100元", "99.00元", "$1", "1234567890"] {
            assert!(takes("amount3", amount), "{amount}");
        }
        for amount in ["元", "¥", "1.", ".5", "12345678901", "¥¥1", "1,000", "-1", "8 元", "null元", "一百元"]
        {
            assert!(!takes("amount3", amount), "{amount}");
        }
    }

    #[test]
    fn other_types_keep_to_their_alphabets() {
        for (field, good, bad) in [
            ("phone_number1", "+86-0766-66888866", "call me"),
            ("car_number1", "粤A8Z888挂", "粤A京Z888"),
            ("number1", "3.14", "1e5"),
            ("letter1", "abc", "abc1"),
            ("symbol1", "~!@", "a"),
            ("phrase1", "已完成", "13笔"),
        ] {
            assert!(takes(field, good), "{field} {good}");
            assert!(!takes(field, bad), "{field} {bad}");
        }
    }

    #[test]
    fn every_field_refuses_emptiness_breaks_and_emoji() {
        for field in ["thing1", "first", "keyword2", "short_thing3", "unheard_of9"] {
            assert!(takes(field, "★ 好 ✓"), "{field}");
            for bad in [
                "",
                "  ",
                "\u{3000}",
                "a\nb",
                "a\tb",
                "a\u{2028}b",
                "好😀",
                "1\u{FE0F}\u{20E3}",
                "🇨🇳",
                "⭐",
                "👨\u{200D}👩",
            ] {
                assert!(!takes(field, bad), "{field} {bad:?}");
            }
        }
        assert!(takes("first", &"long".repeat(100)), "old fields have no documented length");
    }

    #[test]
    fn a_problem_says_field_rule_and_value() {
        let problem = FieldRules::documented().check("thing1", &"很".repeat(30)).unwrap_err().to_string();
        assert_eq!(
            problem,
            format!("`thing1` takes at most 20 characters; found `{}…` (30 characters)", "很".repeat(24))
        );
        let problem = FieldRules::documented().check("thing1", "a\nb").unwrap_err().to_string();
        assert!(problem.contains("`a\\nb`"), "{problem}");
        let problem = FieldRules::documented().check("phone_number1", "13812345678x").unwrap_err().to_string();
        assert!(!problem.contains("13812345678"), "{problem}");
    }

    #[test]
    fn rules_can_be_replaced_and_constants_narrowed() {
        let mut rules = FieldRules::documented();
        let longer =
            FieldRule { form: Form::Any, most: Some(30), most_latin: None, text: "takes at most 30 characters".into() };
        rules.set("thing", longer);
        rules.allow_only("const4", vec!["已发货".into(), "已签收".into()]);
        assert!(rules.check("thing1", &"字".repeat(30)).is_ok());
        assert!(rules.check("const4", "已签收").is_ok());
        assert_eq!(rules.check("const4", "已退货").unwrap_err().rule, "takes only 已发货, 已签收");
    }
}
