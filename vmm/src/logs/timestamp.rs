//! Time as CRI logs write it.

use std::time::{Duration, SystemTime};

/// Bytes of a timestamp.
pub const LEN: usize = "2026-11-24T01:02:03.123456789Z".len();
const SECONDS_A_DAY: u64 = 86_400;

/// Now, as `2026-11-24T01:02:03.123456789Z`.
#[must_use]
pub fn now() -> [u8; LEN] {
    format(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// A time since 1970, in UTC.
#[must_use]
pub fn format(since: Duration) -> [u8; LEN] {
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / SECONDS_A_DAY);
    let clock = seconds % SECONDS_A_DAY;
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], clock / 3600);
    put(&mut text[14..16], clock / 60 % 60);
    put(&mut text[17..19], clock % 60);
    put(&mut text[20..29], u64::from(since.subsec_nanos()));
    text
}

fn put(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of the days since 1970-01-01: counted in eras of 400 years that begin on the first of March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000000Z"),
            (1_795_482_123, 123_456_789, "2026-11-24T01:02:03.123456789Z"),
            (4_107_542_400, 999_999_999, "2100-03-01T00:00:00.999999999Z"),
        ];
        for (seconds, nanos, text) in cases {
            assert_eq!(String::from_utf8_lossy(&format(Duration::new(seconds, nanos))), text);
        }
    }
}
