//! Many short texts in one piece of memory: a column of ids costs no allocation a value.

use std::fmt;

/// A column of texts, each there or not, end to end in one buffer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Texts {
    text: String,
    /// Where each value ends; it begins where the one before ends.
    ends: Vec<usize>,
    absent: Vec<bool>,
}

impl Texts {
    /// Room for `values` of about `bytes` each.
    pub fn with_capacity(values: usize, bytes: usize) -> Self {
        Self {
            text: String::with_capacity(values * bytes),
            ends: Vec::with_capacity(values),
            absent: Vec::with_capacity(values),
        }
    }

    pub fn push(&mut self, value: Option<&str>) {
        self.text.push_str(value.unwrap_or_default());
        self.ends.push(self.text.len());
        self.absent.push(value.is_none());
    }

    /// The values of `more` after those that are here.
    pub fn append(&mut self, more: &Self) {
        let start = self.text.len();
        self.text.push_str(&more.text);
        self.ends.extend(more.ends.iter().map(|end| start + end));
        self.absent.extend_from_slice(&more.absent);
    }

    /// Lets go of the values from place `values` on.
    pub fn truncate(&mut self, values: usize) {
        if values < self.ends.len() {
            self.text.truncate(values.checked_sub(1).map_or(0, |last| self.ends[last]));
            self.ends.truncate(values);
            self.absent.truncate(values);
        }
    }

    /// The bytes of all texts together.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// All texts end to end, and where each of them ends.
    pub fn parts(&self) -> (&str, &[usize]) {
        (&self.text, &self.ends)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&str>> + Clone {
        let mut start = 0;
        self.ends.iter().zip(&self.absent).map(move |(end, absent)| {
            let value = &self.text[start..*end];
            start = *end;
            (!absent).then_some(value)
        })
    }

    /// The value at a place below [`len`](Self::len).
    pub fn get(&self, place: usize) -> Option<&str> {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        (!self.absent[place]).then(|| &self.text[start..self.ends[place]])
    }

    /// Whether there is any value at all.
    pub fn has_any(&self) -> bool {
        self.absent.contains(&false)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl<'a> FromIterator<Option<&'a str>> for Texts {
    fn from_iter<I: IntoIterator<Item = Option<&'a str>>>(values: I) -> Self {
        let mut texts = Self::default();
        values.into_iter().for_each(|value| texts.push(value));
        texts
    }
}

/// Says how many there are and not what they are: most of them are ids of people.
impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Texts({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went_in_also_from_two_pieces() {
        let wanted = [Some("oA"), None, Some(""), Some("微信"), None, Some("z")];
        let mut texts: Texts = wanted[..3].iter().copied().collect();
        texts.append(&wanted[3..].iter().copied().collect());
        assert_eq!(texts.iter().collect::<Vec<_>>(), wanted);
        assert_eq!(texts.len(), 6);
        assert!(!format!("{texts:?}").contains("oA"));
        for left in [6, 5, 2, 0] {
            texts.truncate(left);
            assert_eq!(texts.iter().collect::<Vec<_>>(), wanted[..left]);
        }
        texts.push(Some("oB"));
        assert_eq!(texts.get(0), Some("oB"));
    }
}
