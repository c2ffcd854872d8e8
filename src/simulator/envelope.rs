//! How an event is put into its envelope: signed, and in two of the three modes sealed for the account alone.
//!
//! Plain bodies carry the event in the open, compatible ones both in the open and sealed, safe ones sealed only. What is
//! sealed is sixteen random bytes, the length, the event and the app id, in AES-256-CBC under the key that was entered
//! beside the address, padded to blocks of 32.

use std::io;

use aes::Aes256;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, PAD, STANDARD as PADDED};
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockEncryptMut, KeyIvInit};
use sha1::{Digest, Sha1};

use super::options::{Callback, CallbackMode};
use super::people::mix;

const KEY_CHARACTERS: usize = 43;
const KEY_BYTES: usize = 32;
const VECTOR_BYTES: usize = 16;
const BLOCK_BYTES: usize = 32;

/// Seals and signs for one account.
pub struct Envelope {
    mode: CallbackMode,
    token: String,
    app_id: String,
    /// There is one in the modes that seal.
    key: Option<[u8; KEY_BYTES]>,
}

/// What goes over the line.
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed {
    pub query: String,
    pub body: String,
}

/// What distinguishes one post from another.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub at_seconds: i64,
    /// No other post has it.
    pub number: u64,
}

impl Envelope {
    /// # Errors
    /// When the mode seals and the key is not 43 characters of base64.
    pub fn of(callback: &Callback, app_id: &str) -> io::Result<Self> {
        let key = match callback.mode {
            CallbackMode::Plain => None,
            CallbackMode::Compatible | CallbackMode::Safe => Some(key_of(&callback.encoding_aes_key)?),
        };
        Ok(Self { mode: callback.mode, token: callback.token.clone(), app_id: app_id.to_owned(), key })
    }

    /// The body and the query of one post: `inner` is what stands between `<xml>` and `</xml>`.
    pub fn seal(&self, account: &str, inner: &str, stamp: Stamp) -> Sealed {
        let timestamp = stamp.at_seconds.to_string();
        let nonce = (mix(stamp.number) % 10_000_000_000).to_string();
        let mut query =
            format!("signature={}&timestamp={timestamp}&nonce={nonce}", signature(&[&self.token, &timestamp, &nonce]));
        let Some(key) = &self.key else {
            return Sealed { query, body: format!("<xml>{inner}</xml>") };
        };
        let encrypted = self.encrypt(key, &format!("<xml>{inner}</xml>"), stamp.number);
        query.push_str("&encrypt_type=aes&msg_signature=");
        query.push_str(&signature(&[&self.token, &timestamp, &nonce, &encrypted]));
        let open = match self.mode {
            CallbackMode::Compatible => inner.to_owned(),
            CallbackMode::Plain | CallbackMode::Safe => format!("<ToUserName><![CDATA[{account}]]></ToUserName>"),
        };
        Sealed { query, body: format!("<xml>{open}<Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>") }
    }

    fn encrypt(&self, key: &[u8; KEY_BYTES], message: &str, number: u64) -> String {
        let length = u32::try_from(message.len()).expect("an event is short");
        let mut bytes = Vec::with_capacity(message.len() + 96);
        bytes.extend_from_slice(&mix(number ^ 0x7365_616c).to_be_bytes());
        bytes.extend_from_slice(&mix(mix(number)).to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(message.as_bytes());
        bytes.extend_from_slice(self.app_id.as_bytes());
        let padding = BLOCK_BYTES - bytes.len() % BLOCK_BYTES;
        bytes.resize(bytes.len() + padding, u8::try_from(padding).expect("a block has 32 bytes"));
        let encryptor = cbc::Encryptor::<Aes256>::new(key.into(), key[..VECTOR_BYTES].into());
        PADDED.encode(encryptor.encrypt_padded_vec_mut::<NoPadding>(&bytes))
    }
}

/// The 32 bytes that 43 characters stand for; the two bits too many may be anything.
fn key_of(text: &str) -> io::Result<[u8; KEY_BYTES]> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "an EncodingAESKey is 43 letters and digits");
    if text.len() != KEY_CHARACTERS {
        return Err(refused());
    }
    let lenient = GeneralPurpose::new(&STANDARD, PAD.with_decode_allow_trailing_bits(true));
    let bytes = lenient.decode(format!("{text}=")).map_err(|_| refused())?;
    bytes.try_into().map_err(|_| refused())
}

/// Lower-case hex of the SHA-1 over the parts, sorted and joined.
pub fn signature(parts: &[&str]) -> String {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    Sha1::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use cbc::cipher::BlockDecryptMut;

    use super::*;

    /// Its last character carries bits that belong to no byte.
    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

    fn envelope(mode: CallbackMode) -> Envelope {
        let callback = Callback::new("http://127.0.0.1/", "tok").sealed(mode, KEY);
        Envelope::of(&callback, "wxapp").unwrap()
    }

    #[test]
    fn the_signature_is_the_documented_one() {
        let signed = signature(&["AAAAA", "1714036504", "1514711492"]);
        assert_eq!(signed, "f464b24fc39322e44b38aa78f5edd27bd1441696");
    }

    #[test]
    fn a_key_of_another_length_or_alphabet_is_refused() {
        assert!(key_of(KEY).is_ok() && key_of(&KEY[1..]).is_err() && key_of(&KEY.replace('a', "-")).is_err());
    }

    #[test]
    fn what_was_sealed_opens_with_the_key_to_the_same_event_and_ends_in_the_app_id() {
        let stamp = Stamp { at_seconds: 1_764_000_000, number: 7 };
        let sealed = envelope(CallbackMode::Safe).seal("gh_a", "<A>1</A>", stamp);
        let (_, rest) = sealed.body.split_once("<Encrypt><![CDATA[").unwrap();
        let encrypted = PADDED.decode(rest.split("]]>").next().unwrap()).unwrap();
        let key = key_of(KEY).unwrap();
        let decryptor = cbc::Decryptor::<Aes256>::new(&key.into(), key[..16].into());
        let bytes = decryptor.decrypt_padded_vec_mut::<NoPadding>(&encrypted).unwrap();
        let message = "<xml><A>1</A></xml>";
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        assert_eq!(bytes[16..20], u32::try_from(message.len()).unwrap().to_be_bytes());
        assert_eq!(&bytes[20..20 + message.len()], message.as_bytes());
        assert_eq!(&bytes[20 + message.len()..][..5], b"wxapp");
        assert!(!sealed.body.contains("<A>") && sealed.query.contains("encrypt_type=aes&msg_signature="));
    }

    #[test]
    fn compatible_says_it_twice_and_plain_once() {
        let stamp = Stamp { at_seconds: 1, number: 1 };
        let both = envelope(CallbackMode::Compatible).seal("gh_a", "<A>1</A>", stamp).body;
        assert!(both.starts_with("<xml><A>1</A><Encrypt>"));
        let plain = envelope(CallbackMode::Plain).seal("gh_a", "<A>1</A>", stamp);
        assert_eq!(plain.body, "<xml><A>1</A></xml>");
        assert!(!plain.query.contains("msg_signature"));
    }
}
