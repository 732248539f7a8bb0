//! What every saved state is wrapped in. All numbers are little-endian.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Raised when a field changes its meaning or place; fields that are added at the end of an enum do not need it.
pub const VERSION: u32 = 1;
/// Longest body: memory is not part of it.
pub const MAX_BODY: usize = 16 << 20;

const MAGIC: [u8; 8] = *b"BULKSTAT";
/// Magic, version, length of the body, checksum.
const HEADER_LEN: usize = 8 + 4 + 4 + 4;

/// Why bytes are no saved state.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Another kind of file.
    #[error("this is no saved state of bulkhead-vmm")]
    Magic,
    /// From another release.
    #[error("the saved state has version {0}, this bulkhead-vmm reads version {VERSION}")]
    Version(u32),
    /// Cut off, or more than there should be.
    #[error("the saved state says that its body has {said} bytes, but {found} are there")]
    Length {
        /// As the header says.
        said: usize,
        /// What follows the header.
        found: usize,
    },
    /// More than any state has.
    #[error("the saved state's body of {0} bytes is longer than {MAX_BODY}")]
    TooLong(usize),
    /// Changed after it was written.
    #[error("the saved state is damaged: its checksum is {found:#010x}, not {said:#010x}")]
    Checksum {
        /// As the header says.
        said: u32,
        /// Of the bytes that are there.
        found: u32,
    },
    /// Sound, but not what is looked for.
    #[error("the saved state's body is not what it should be: {0}")]
    Body(postcard::Error),
}

/// Wraps a value.
///
/// # Errors
/// When it is too long.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EnvelopeError> {
    wrap(&postcard::to_allocvec(value).map_err(EnvelopeError::Body)?)
}

/// Puts a header in front of a body.
///
/// # Errors
/// When it is too long.
pub fn wrap(body: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
    let len = len.ok_or(EnvelopeError::TooLong(body.len()))?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(checksum(VERSION, len, body).to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Takes a value out of its wrapping.
///
/// # Errors
/// When it is anything but what [`encode`] made of a value of this type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EnvelopeError> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(EnvelopeError::Magic)?;
    if *magic != MAGIC {
        return Err(EnvelopeError::Magic);
    }
    let (version, rest) = number(rest)?;
    if version != VERSION {
        return Err(EnvelopeError::Version(version));
    }
    let (len, rest) = number(rest)?;
    let (said, body) = number(rest)?;
    if len as usize > MAX_BODY {
        return Err(EnvelopeError::TooLong(len as usize));
    }
    if len as usize != body.len() {
        return Err(EnvelopeError::Length { said: len as usize, found: body.len() });
    }
    let found = checksum(version, len, body);
    if said != found {
        return Err(EnvelopeError::Checksum { said, found });
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(EnvelopeError::Body)?;
    match rest {
        [] => Ok(value),
        _ => Err(EnvelopeError::Length { said: body.len() - rest.len(), found: body.len() }),
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), EnvelopeError> {
    let short = EnvelopeError::Length { said: HEADER_LEN, found: 0 };
    let (number, rest) = bytes.split_first_chunk().ok_or(short)?;
    Ok((u32::from_le_bytes(*number), rest))
}

/// Of the header's numbers and the body.
fn checksum(version: u32, len: u32, body: &[u8]) -> u32 {
    let numbers = u64::from(version) | u64::from(len) << 32;
    crc32c::crc32c_append(crc32c::crc32c(&numbers.to_le_bytes()), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_survives_and_every_changed_bit_is_noticed() {
        let value = (7_u64, "text".to_owned(), vec![Some(1_u16), None]);
        let bytes = encode(&value).unwrap();
        assert_eq!(decode::<(u64, String, Vec<Option<u16>>)>(&bytes).unwrap(), value);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(decode::<(u64, String, Vec<Option<u16>>)>(&changed).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode::<(u64, String, Vec<Option<u16>>)>(&bytes[..at]).is_err());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(decode::<(u64, String, Vec<Option<u16>>)>(&longer), Err(EnvelopeError::Length { .. })));
    }

    #[test]
    fn errors_tell_what_is_wrong() {
        let text = |bytes: &[u8]| decode::<u64>(bytes).unwrap_err().to_string();
        assert!(text(b"\x7fELF").contains("no saved state"));
        let mut other = encode(&1_u64).unwrap();
        other[8] = 2;
        assert!(text(&other).contains("version 2"));
        assert!(text(&encode(&(1_u64, 2_u64)).unwrap()).contains("says that its body"));
        assert!(matches!(wrap(&vec![0; MAX_BODY + 1]), Err(EnvelopeError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_body_is_an_error_or_a_value(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Vec<crate::state::DeviceState>>(&wrap(&body).unwrap());
            let _ = decode::<Vec<crate::state::DeviceState>>(&body);
        }
    }
}
