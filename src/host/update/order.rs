//! Whether an order to update is taken. Pure.

use super::plan::outranks;
use super::signature;
use super::state::{Slot, State};
use super::version::{Version, bare};
use crate::hex::unhex32;
use crate::secret::Secret;

/// An order, from the control plane or from somebody at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What the new version must call itself, without a leading `v`.
    pub version: String,
    /// Where it is; `None` = in its slot already.
    pub url: Option<Secret>,
    /// SHA-256 of the program, lower-case hex.
    pub sha256: String,
    /// The signature over it, DER.
    pub signature: Vec<u8>,
    /// Whether it may be older, or tried again.
    pub force: bool,
}

impl Order {
    /// Reads what somebody sent.
    ///
    /// # Errors
    /// What of it is malformed.
    pub fn read(
        version: &str,
        url: Option<Secret>,
        sha256: &str,
        signature: &[u8],
        force: bool,
    ) -> Result<Self, String> {
        if Version::parse(version).is_none() {
            return Err(format!(
                "{:?} is not a version such as 1.2.3",
                crate::redact::clean(version)
            ));
        }
        if url.as_ref().is_some_and(|url| !url.expose().starts_with("https://")) {
            return Err("binary_url is not https".to_owned());
        }
        let sha256 = sha256.trim().to_ascii_lowercase();
        if unhex32(&sha256).is_none() {
            return Err("sha256 is not 64 hexadecimal digits".to_owned());
        }
        let signature = signature::decode(signature)
            .ok_or("the signature is neither DER nor base64 of it (`cosign sign-blob`)")?;
        let version = bare(version).to_owned();
        Ok(Self { version, url, sha256, signature, force })
    }

    /// The slot for it, for an installed version `installed`.
    pub fn slot(&self, installed: &str) -> Slot {
        let slot =
            Slot { sha256: self.sha256.clone(), version: self.version.clone(), instead_of: None };
        let instead_of = (!outranks(&slot, installed)).then(|| installed.to_owned());
        Slot { instead_of, ..slot }
    }
}

/// Decides over an order while version `running` runs.
///
/// # Errors
/// The reason of a refusal.
pub fn judge(order: &Order, running: &str, state: &State) -> Result<(), String> {
    if let Some(trial) = &state.trial {
        return Err(format!("version {} is being tried", trial.slot.version));
    }
    let runs = |slot: &&Slot| slot.sha256 == order.sha256 && slot.version == running;
    if let Some(current) = state.current.as_ref().filter(runs) {
        // Even by force: a trial of it that fails would take back the version that is known to work.
        return Err(format!("version {} runs already, this very binary", current.version));
    }
    if order.force {
        return Ok(());
    }
    if let Some(failed) = state.failed.iter().find(|failed| failed.sha256 == order.sha256) {
        return Err(format!(
            "this binary was tried and given up: {}; force tries it again",
            failed.reason
        ));
    }
    let (wanted, running) = (Version::parse(&order.version), Version::parse(running));
    match wanted.cmp(&running) {
        std::cmp::Ordering::Equal => Err(format!("version {} runs already", order.version)),
        std::cmp::Ordering::Less => Err(format!(
            "version {} is older than the one that runs; force takes it",
            order.version
        )),
        std::cmp::Ordering::Greater => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(version: &str, force: bool) -> Order {
        Order::read(version, None, &"A".repeat(64), &[0x30; 70], force).unwrap()
    }

    #[test]
    fn only_forward_unless_forced() {
        let state = State::default();
        assert_eq!(judge(&order("v1.2.4", false), "1.2.3", &state), Ok(()));
        let refused = |version| judge(&order(version, false), "1.2.3", &state).unwrap_err();
        assert!(refused("1.2.3").contains("already"));
        assert!(refused("1.2.2").contains("older"));
        assert!(refused("1.2.3-rc.1").contains("older"));
        for version in ["1.2.3", "1.2.2"] {
            assert_eq!(judge(&order(version, true), "1.2.3", &state), Ok(()));
        }
    }

    #[test]
    fn the_binary_that_runs_is_not_tried_again_even_if_forced() {
        let mut state = State::default();
        state.propose(order("2.0.0", false).slot("1.0.0"), "1.0.0");
        state.confirm(0);
        for force in [true, false] {
            let refused = judge(&order("2.0.0", force), "2.0.0", &state).unwrap_err();
            assert!(refused.contains("runs already"), "{refused}");
        }
        let another = Order { sha256: "b".repeat(64), ..order("2.0.0", true) };
        assert_eq!(judge(&another, "2.0.0", &state), Ok(()));
        assert_eq!(judge(&order("2.0.0", true), "3.0.0", &state), Ok(()), "a package overtook it");
    }

    #[test]
    fn a_failed_binary_is_not_tried_again_unless_forced() {
        let mut state = State::default();
        state.propose(order("2.0.0", false).slot("1.0.0"), "1.0.0");
        assert!(judge(&order("2.0.0", true), "1.0.0", &state).unwrap_err().contains("being tried"));
        state.fail(&"a".repeat(64), "it hung", 0);
        assert!(judge(&order("2.0.0", false), "1.0.0", &state).unwrap_err().contains("it hung"));
        assert_eq!(judge(&order("2.0.0", true), "1.0.0", &state), Ok(()));
    }

    #[test]
    fn what_does_not_outrank_the_installed_one_says_what_it_stands_for() {
        assert_eq!(order("2.0.0", false).slot("1.0.0").instead_of, None);
        assert_eq!(order("1.0.0", true).slot("1.0.0").instead_of.as_deref(), Some("1.0.0"));
    }

    #[test]
    fn malformed_orders_are_refused_in_words() {
        let read = |version, url: Option<&str>, sha256: &str, signature: &[u8]| {
            Order::read(version, url.map(Secret::new), sha256, signature, true).unwrap_err()
        };
        let (hash, der) = ("a".repeat(64), [0x30; 70]);
        assert!(read("latest", None, &hash, &der).contains("not a version"));
        assert!(read("1.0.0", Some("http://h/x"), &hash, &der).contains("https"));
        assert!(read("1.0.0", Some(""), &hash, &der).contains("https"));
        assert!(read("1.0.0", None, "abc", &der).contains("sha256"));
        assert!(read("1.0.0", None, &hash, b"").contains("signature"));
    }
}
