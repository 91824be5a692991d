//! Networks as CIDRs: which addresses they hold, which others they overlap with.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Serialize;

/// A network: an address and how many of its bits are the network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The address, as written.
    pub address: IpAddr,
    /// Bits of the network; at most as many as the address has.
    pub prefix: u8,
}

/// A text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a network like 10.244.0.0/24, got {text:?}")]
pub struct NotACidr {
    /// The text.
    pub text: String,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let wrong = || NotACidr { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|prefix| digits && *prefix <= bits(address)).ok_or_else(wrong)?;
        Ok(Cidr { address, prefix })
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Cidr {
    /// Whether it is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The network itself: the address with the other bits cleared.
    pub fn network(&self) -> Cidr {
        let spare = u32::from(bits(self.address) - self.prefix);
        let address = match self.address {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(clear(address.to_bits().into(), spare) as u32)),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(clear(address.to_bits(), spare))),
        };
        Cidr { address, prefix: self.prefix }
    }

    /// The network around it that has `bits` bits less, or all addresses.
    pub fn widened(&self, bits: u8) -> Cidr {
        Cidr { address: self.address, prefix: self.prefix.saturating_sub(bits) }.network()
    }

    /// Whether an address lies in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && Cidr { address, prefix: self.prefix }.network() == self.network()
    }

    /// Whether there is an address in both.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        if self.prefix <= other.prefix { self.holds(other.address) } else { other.holds(self.address) }
    }
}

/// The last `count` bits cleared.
fn clear(bits: u128, count: u32) -> u128 {
    u128::MAX.checked_shl(count).unwrap_or(0) & bits
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_cidr() -> impl Strategy<Value = Cidr> {
        prop_oneof![
            (any::<u32>(), 0u8..=32)
                .prop_map(|(address, prefix)| Cidr { address: Ipv4Addr::from_bits(address).into(), prefix }),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(address, prefix)| Cidr { address: Ipv6Addr::from_bits(address).into(), prefix }),
        ]
    }

    fn of(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_none() {
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "x/8", "fd00::/129"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn examples() {
        assert_eq!(of("10.244.3.7/24").network(), of("10.244.3.0/24"));
        assert_eq!(of("10.244.3.0/24").widened(8), of("10.244.0.0/16"));
        assert_eq!(of("10.0.0.0/4").widened(8), of("0.0.0.0/0"));
        assert!(of("10.244.0.0/16").overlaps(&of("10.244.3.0/24")));
        assert!(of("10.244.3.0/24").overlaps(&of("10.244.0.0/16")));
        assert!(!of("10.244.3.0/24").overlaps(&of("10.244.4.0/24")));
        assert!(!of("0.0.0.0/0").overlaps(&of("::/0")));
        assert!(of("fd00:1::/64").holds("fd00:1::5".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn texts_are_read_as_they_are_written(cidr in any_cidr()) {
            prop_assert_eq!(of(&cidr.to_string()), cidr);
        }

        #[test]
        fn networks_and_overlaps(a in any_cidr(), b in any_cidr(), wider in 0u8..40) {
            prop_assert_eq!(a.network().network(), a.network());
            prop_assert!(a.holds(a.address) && a.overlaps(&a));
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            prop_assert!(a.widened(wider).overlaps(&a) && a.widened(wider).holds(a.network().address));
        }
    }
}
