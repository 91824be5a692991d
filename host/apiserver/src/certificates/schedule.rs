//! When certificates are renewed, as pure functions of dates and a random number.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use crate::credentials::CertificateDates;

/// Between 70 and 90 % of a certificate's life (`jitteryDuration` in `client-go/util/certificate/certificate_manager.go`),
/// by a random number 0 ≤ x < 1.
pub(crate) fn renewal(dates: &CertificateDates, random: f64) -> Timestamp {
    let life = dates.not_after.duration_since(dates.not_before).as_secs_f64().max(0.0);
    let share = 0.7 + 0.2 * random.clamp(0.0, 1.0);
    let after = SignedDuration::try_from_secs_f64(life * share).unwrap_or(SignedDuration::ZERO);
    dates.not_before.checked_add(after).unwrap_or(dates.not_after)
}

/// The same for a certificate that was signed just now. API servers date them back; one that holds for minutes only would
/// be past its time at once, and asked for again and again: half of what is left passes first.
pub(crate) fn renewal_of_new(dates: &CertificateDates, now: Timestamp, random: f64) -> Timestamp {
    let left = dates.not_after.duration_since(now).max(SignedDuration::ZERO);
    let soonest = now.checked_add((left / 2).max(SignedDuration::from_secs(1))).unwrap_or(dates.not_after);
    renewal(dates, random).max(soonest)
}

/// The wait before another try after that many failures in a row.
pub(crate) fn back_off(failures: u32, random: f64) -> Duration {
    let base = Duration::from_secs(2) * 2u32.saturating_pow(failures.min(8));
    base.min(Duration::from_secs(300)).mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
}

/// The names that a server's certificate must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServingNames {
    /// Host names.
    pub dns: BTreeSet<String>,
    /// Addresses; without any nothing is asked for, as API servers sign no such certificate.
    pub ips: BTreeSet<IpAddr>,
}

impl ServingNames {
    /// Whether the first certificate of a chain has all of them.
    pub(crate) fn covered_by(&self, chain: &str) -> bool {
        let Some(Ok(der)) = CertificateDer::pem_slice_iter(chain.as_bytes()).next() else { return false };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return false };
        let (mut dns, mut ips) = (BTreeSet::new(), BTreeSet::new());
        if let Ok(Some(names)) = parsed.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => drop(dns.insert((*name).to_owned())),
                    GeneralName::IPAddress(bytes) => {
                        let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                        let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                        ips.extend(address);
                    }
                    _ => {}
                }
            }
        }
        self.dns.is_subset(&dns) && self.ips.is_subset(&ips)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn renewal_is_late_in_life_but_not_too_late(begin in 0i64..4_000_000_000, life in 1i64..400_000_000, random in 0f64..1.0) {
            let at = |seconds| Timestamp::from_second(seconds).unwrap();
            let dates =
                CertificateDates { common_name: String::new(), not_before: at(begin), not_after: at(begin + life) };
            let share = renewal(&dates, random).duration_since(dates.not_before).as_secs_f64() / life as f64;
            prop_assert!((0.699..0.901).contains(&share), "{}", share);
        }

        #[test]
        fn a_new_certificate_is_used_for_a_while(back in 0i64..1000, left in 0i64..1000, random in 0f64..1.0) {
            let at = |seconds| Timestamp::from_second(1_000_000 + seconds).unwrap();
            let dates = CertificateDates { common_name: String::new(), not_before: at(-back), not_after: at(left) };
            let due = renewal_of_new(&dates, at(0), random);
            prop_assert!(due >= renewal(&dates, random) && due > at(0) && due >= at(left / 2));
            prop_assert!(due <= at(left.max(1)));
        }

        #[test]
        fn back_off_grows_to_a_bound(failures in 0u32..100, random in 0f64..1.0) {
            let wait = back_off(failures, random);
            prop_assert!(wait >= Duration::from_millis(1600) && wait <= Duration::from_secs(360));
            prop_assert!(back_off(failures + 1, random) >= wait);
        }
    }

    #[test]
    fn names_are_looked_up_in_the_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["a".to_owned(), "10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let pem = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
        let wanted = |dns: &[&str], ips: &[&str]| ServingNames {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        assert!(wanted(&["a"], &["10.0.0.1", "fd00::1"]).covered_by(&pem));
        assert!(!wanted(&["b"], &[]).covered_by(&pem));
        assert!(!wanted(&[], &["10.0.0.2"]).covered_by(&pem));
        assert!(!wanted(&["a"], &[]).covered_by("none"));
    }
}
