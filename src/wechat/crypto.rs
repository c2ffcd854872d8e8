//! The cryptography of WeChat's callbacks: signatures, and the sealed form of messages.
//!
//! A key is 43 characters of base64 that carry 258 bits, two more than the 256 that count: those two may be anything. A
//! sealed message is 16 random bytes, the length, the message and the app id, in AES-256-CBC whose vector is the key's first
//! half, padded to blocks of 32 and not of the cipher's 16.

use aes::Aes256;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockDecryptMut as _, KeyIvInit as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha1::{Digest as _, Sha1};
use subtle::ConstantTimeEq as _;

const KEY_BYTES: usize = 32;
const VECTOR_BYTES: usize = 16;
const LARGEST_PADDING: usize = 32;
const RANDOM_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;

/// Takes the bits that belong to no byte.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The key that an account's messages are sealed with.
pub(super) struct AesKey([u8; KEY_BYTES]);

impl std::fmt::Debug for AesKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AesKey(***)")
    }
}

impl AesKey {
    /// Reads an EncodingAESKey; `None` when it is none.
    pub(super) fn read(text: &SecretString) -> Option<Self> {
        LENIENT.decode(text.expose_secret()).ok()?.try_into().ok().map(Self)
    }

    /// Opens a sealed message; `None` when it was not sealed with this key, or for another app.
    pub(super) fn open(&self, sealed: &str, app_id: &str) -> Option<Vec<u8>> {
        let mut bytes = general_purpose::STANDARD.decode(sealed.trim()).ok()?;
        let decryptor = cbc::Decryptor::<Aes256>::new((&self.0).into(), self.0[..VECTOR_BYTES].into());
        let length = decryptor.decrypt_padded_mut::<NoPadding>(&mut bytes).ok()?.len();
        bytes.truncate(length);
        let padding = usize::from(*bytes.last()?);
        if !(1..=LARGEST_PADDING).contains(&padding) || padding > bytes.len() {
            return None;
        }
        bytes.truncate(bytes.len() - padding);
        let rest = bytes.get(RANDOM_BYTES..)?;
        let (length, rest) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (message, sealed_for) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        is_same(sealed_for, app_id.as_bytes()).then(|| message.to_vec())
    }
}

/// Whether `shown` is the signature of these parts, in a time that does not depend on where they differ.
pub(super) fn is_signature(shown: &str, parts: &[&str]) -> bool {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    let mut hash = Sha1::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    let mut signature = [0_u8; 40];
    for (pair, byte) in signature.chunks_exact_mut(2).zip(digest) {
        pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
    }
    is_same(shown.as_bytes(), &signature)
}

fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

#[cfg(test)]
mod tests {
    use cbc::cipher::BlockEncryptMut as _;

    use super::*;

    /// The last character carries two bits that belong to no byte.
    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

    fn key(text: &str) -> Option<AesKey> {
        AesKey::read(&SecretString::from(text))
    }

    fn seal(plain: &[u8]) -> String {
        let key = key(KEY).unwrap();
        let encryptor = cbc::Encryptor::<Aes256>::new((&key.0).into(), key.0[..16].into());
        general_purpose::STANDARD.encode(encryptor.encrypt_padded_vec_mut::<NoPadding>(plain))
    }

    /// A message as it is before sealing, with `padding` bytes of that value behind it.
    fn plain(message: &str, app_id: &str, padding: u8) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let mut bytes = [&[7; 16], length.as_slice(), message.as_bytes(), app_id.as_bytes()].concat();
        bytes.resize(bytes.len() + usize::from(padding), padding);
        bytes
    }

    #[test]
    fn the_documented_example_is_signed_so_and_nothing_near_it() {
        let parts = ["AAAAA", "1714036504", "1514711492"];
        assert!(is_signature("f464b24fc39322e44b38aa78f5edd27bd1441696", &parts));
        for wrong in
            ["", "f464", "F464B24FC39322E44B38AA78F5EDD27BD1441696", "f464b24fc39322e44b38aa78f5edd27bd1441697"]
        {
            assert!(!is_signature(wrong, &parts), "{wrong}");
        }
    }

    #[test]
    fn a_key_may_carry_bits_that_belong_to_no_byte() {
        let same = key(&KEY.replace('G', "E")).unwrap();
        assert_eq!(key(KEY).unwrap().0, same.0);
        assert!(key(&KEY[1..]).is_none() && key("").is_none());
        assert_eq!(format!("{same:?}"), "AesKey(***)");
    }

    #[test]
    fn paddings_up_to_a_block_of_32_are_taken_off() {
        for filler in 0..32 {
            let message = "m".repeat(1 + filler);
            let bare = 16 + 4 + message.len() + 5;
            let padding = u8::try_from(32 - bare % 32).unwrap();
            let opened = key(KEY).unwrap().open(&seal(&plain(&message, "wxapp", padding)), "wxapp");
            assert_eq!(opened.as_deref(), Some(message.as_bytes()), "padding {padding}");
        }
    }

    #[test]
    fn what_is_for_another_app_or_was_touched_stays_closed() {
        let key = key(KEY).unwrap();
        let padded = plain("m", "wxapp", 6);
        assert!(key.open(&seal(&padded), "wxother").is_none());
        assert!(
            key.open("", "wxapp").is_none() && key.open("AAAA", "wxapp").is_none() && key.open("@", "wxapp").is_none()
        );
        for padding in [0, 33, 200] {
            let mut wrong = padded.clone();
            *wrong.last_mut().unwrap() = padding;
            assert!(key.open(&seal(&wrong), "wxapp").is_none());
        }
        let mut too_long = padded;
        too_long[16] = 255;
        assert!(key.open(&seal(&too_long), "wxapp").is_none());
        assert!(key.open(&seal(&[1; 16]), "wxapp").is_none());
    }
}
