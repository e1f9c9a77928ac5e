//! From when until when a certificate is valid. Pure.

use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// The time of a certificate, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from_ms: i64,
    /// Not after.
    pub until_ms: i64,
}

impl Validity {
    /// Reads it out of a certificate in DER; `None` when that is none.
    pub fn of(certificate: &[u8]) -> Option<Validity> {
        let certificate = Certificate::from_der(certificate).ok()?;
        let validity = certificate.tbs_certificate().validity();
        let ms = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_millis()).ok();
        Some(Validity { from_ms: ms(validity.not_before)?, until_ms: ms(validity.not_after)? })
    }

    /// Whole days that are left at `now_ms`; negative when it has ended.
    pub fn days_left(&self, now_ms: i64) -> i64 {
        self.until_ms.saturating_sub(now_ms).div_euclid(86_400_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_days_that_are_left_are_counted_whole() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 3, 1);
        let certificate = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let validity = Validity::of(certificate.der()).unwrap();
        assert_eq!((validity.until_ms - validity.from_ms) / 86_400_000, 59);
        let day_ms = 86_400_000;
        for (before_end_ms, days) in [(day_ms * 30, 30), (day_ms, 1), (day_ms - 1, 0), (0, 0), (-1, -1)] {
            assert_eq!(validity.days_left(validity.until_ms - before_end_ms), days);
        }
        assert_eq!(Validity::of(b"no certificate"), None);
    }
}
