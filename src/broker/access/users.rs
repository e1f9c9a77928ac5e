//! Who somebody is, as far as that can be said without working out a hash, and what he may do then. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::acl::Rights;
use super::tokens::Shown;
use crate::broker::peer::Peer;
use crate::config::{AccessConfig, CertificateName, PasswordHash, TokenConfig};

/// Somebody who has shown who he is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::broker) struct Identity {
    /// The user; empty for whoever has no name.
    pub user: Arc<str>,
    pub(super) proof: Proof,
}

/// By what he has shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// He is on this machine, where that is enough.
    Place,
    Certificate(CertificateName),
    Password(Box<PasswordHash>),
    Token(Arc<Shown>),
}

/// What can be said of somebody who wants to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// He is this one.
    Proven(Identity),
    /// His password has to be compared; there is nothing to compare it with where there is no such user, which he must not
    /// learn from how long it takes.
    Password { user: Arc<str>, hash: Option<PasswordHash> },
    /// He gave no name, where one is needed.
    Nameless,
    /// He gave a name, and neither a password nor the certificate of that user.
    Unproven { user: Arc<str> },
}

/// Everybody who may connect.
#[derive(Debug, Default)]
pub(super) struct Book {
    access: AccessConfig,
    by_certificate: HashMap<CertificateName, Arc<str>>,
}

impl Book {
    pub(super) fn new(access: AccessConfig) -> Book {
        let named = access.users.iter().filter_map(|(name, user)| Some((user.certificate.clone()?, name.clone())));
        Book { by_certificate: named.collect(), access }
    }

    /// Whether whoever is on this machine needs no name.
    fn has_anonymous(&self) -> bool {
        (self.access.users.is_empty() && self.access.tokens.is_none()) || self.access.anonymous.is_some()
    }

    /// Where tokens are taken, whoever makes them may know users that nobody has written down here.
    pub(super) fn has_user(&self, name: &str) -> bool {
        self.access.users.contains_key(name) || (self.access.tokens.is_some() && !name.is_empty())
    }

    /// What a token must say.
    pub(super) fn tokens(&self) -> Option<&TokenConfig> {
        self.access.tokens.as_ref()
    }

    /// What a token must say, where whoever gives this name, or none, may show one. A user who is written down is not to be had
    /// by anybody's token unless he says so.
    pub(super) fn tokens_for(&self, name: Option<&str>) -> Option<&TokenConfig> {
        let is_open = |name: &str| self.access.users.get(name).is_none_or(|user| user.by_token);
        self.access.tokens.as_ref().filter(|_| name.is_none_or(|name| name.is_empty() || is_open(name)))
    }

    pub(super) fn claim(&self, peer: &Peer, username: Option<&str>, has_password: bool) -> Claim {
        let certified = self.certified(peer);
        let name = match username {
            // While nobody has a name, one that is given does not matter: so it was before there were users.
            Some(name) if !name.is_empty() && (!self.access.users.is_empty() || self.access.tokens.is_some()) => name,
            _ => {
                return match certified {
                    Some(identity) => Claim::Proven(identity),
                    None if peer.is_local() && self.has_anonymous() => {
                        Claim::Proven(Identity { user: Arc::from(""), proof: Proof::Place })
                    }
                    None => Claim::Nameless,
                };
            }
        };
        match certified {
            Some(identity) if *identity.user == *name => Claim::Proven(identity),
            _ if !has_password => Claim::Unproven { user: Arc::from(name) },
            _ => {
                let hash = self.access.users.get(name).and_then(|user| user.password.clone());
                Claim::Password { user: Arc::from(name), hash }
            }
        }
    }

    /// The user of a certificate that the listener has verified; its common name comes first.
    fn certified(&self, peer: &Peer) -> Option<Identity> {
        let names = peer.certificate.as_ref()?;
        let common = names.common_name.iter().map(|name| CertificateName::Common(Arc::from(name.as_str())));
        let others = names.sans.iter().map(|name| CertificateName::Alternative(Arc::from(name.as_str())));
        common.chain(others).find_map(|name| {
            let user = self.by_certificate.get(&name)?.clone();
            Some(Identity { user, proof: Proof::Certificate(name) })
        })
    }

    /// Whether what he showed then is good today.
    pub(super) fn vouches_for(&self, identity: &Identity) -> bool {
        match &identity.proof {
            Proof::Place => self.has_anonymous(),
            Proof::Certificate(name) => self.by_certificate.get(name) == Some(&identity.user),
            Proof::Token(shown) => {
                self.tokens_for(Some(&identity.user)).is_some_and(|tokens| shown.is_vouched_for(tokens).is_ok())
            }
            Proof::Password(hash) => {
                self.access.users.get(&identity.user).is_some_and(|user| user.password.as_ref() == Some(hash.as_ref()))
            }
        }
    }

    /// What he may do under a client id, whatever he showed.
    pub(super) fn rights(&self, identity: &Identity, client_id: &str) -> Rights {
        match &identity.proof {
            Proof::Place if !self.has_anonymous() => Rights::nothing(),
            Proof::Place => match &self.access.anonymous {
                Some(rights) => Rights::of(rights, client_id, ""),
                None => Rights::everything(),
            },
            Proof::Token(shown) => match self.tokens_for(Some(&identity.user)) {
                Some(tokens) => {
                    let mut rights = tokens.rights.clone();
                    let own = self.access.users.get(&identity.user).map(|user| &user.rights);
                    let groups = shown.groups.iter().filter_map(|group| tokens.groups.get(group));
                    groups.chain(own).for_each(|more| rights.extend(more));
                    Rights::of(&rights, client_id, &identity.user)
                }
                None => Rights::nothing(),
            },
            Proof::Certificate(_) | Proof::Password(_) => match self.access.users.get(&identity.user) {
                Some(user) => Rights::of(&user.rights, client_id, &identity.user),
                None => Rights::nothing(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::peer::{CertificateNames, PeerAddress};
    use crate::config::{TopicRights, UserConfig, parse_password_hash};
    use crate::message::Topic;

    fn hash(of: &str) -> PasswordHash {
        parse_password_hash(&super::super::hashes_for_tests(of)).unwrap()
    }

    fn user(password: Option<&str>, certificate: Option<CertificateName>) -> UserConfig {
        UserConfig { password: password.map(hash), certificate, by_token: false, rights: TopicRights::default() }
    }

    fn common(name: &str) -> CertificateName {
        CertificateName::Common(Arc::from(name))
    }

    fn book(users: &[(&str, UserConfig)], anonymous: Option<TopicRights>) -> Book {
        let users = users.iter().map(|(name, user)| (Arc::from(*name), user.clone())).collect();
        Book::new(AccessConfig { users, anonymous, tokens: None })
    }

    fn plant() -> Book {
        let uri = CertificateName::Alternative(Arc::from("urn:plc9"));
        book(
            &[
                ("hmi", user(Some("a"), None)),
                ("plc7", user(None, Some(common("plc7")))),
                ("plc9", user(None, Some(uri))),
            ],
            None,
        )
    }

    fn peer(address: &str, common_name: Option<&str>, sans: &[&str]) -> Peer {
        let names = CertificateNames {
            common_name: common_name.map(str::to_owned),
            sans: sans.iter().map(|name| (*name).to_owned()).collect(),
        };
        let has_certificate = common_name.is_some() || !sans.is_empty();
        Peer {
            address: PeerAddress::Network(address.parse().unwrap()),
            listener: Arc::from("test"),
            is_encrypted: has_certificate,
            certificate: has_certificate.then(|| Arc::new(names)),
        }
    }

    fn proven(claim: Claim) -> Option<String> {
        match claim {
            Claim::Proven(identity) => Some(identity.user.to_string()),
            _ => None,
        }
    }

    #[test]
    fn without_users_whoever_is_on_this_machine_may_do_everything_and_nobody_else_may_connect() {
        let open = book(&[], None);
        let near = peer("127.0.0.1:1", None, &[]);
        assert_eq!(proven(open.claim(&near, None, false)).as_deref(), Some(""));
        assert_eq!(proven(open.claim(&near, Some("somebody"), true)).as_deref(), Some(""));
        assert_eq!(open.claim(&peer("192.0.2.1:1", None, &[]), None, false), Claim::Nameless);
        assert_eq!(open.claim(&peer("192.0.2.1:1", None, &[]), Some("somebody"), true), Claim::Nameless);
        let unix = Peer { address: PeerAddress::Unix { uid: None }, ..near };
        let Claim::Proven(nobody) = open.claim(&unix, None, false) else { panic!() };
        assert_eq!(open.rights(&nobody, "c"), Rights::everything());
    }

    #[test]
    fn with_a_user_everybody_needs_a_name_unless_the_owner_says_what_others_may_do_on_this_machine() {
        let near = peer("127.0.0.1:1", None, &[]);
        assert_eq!(plant().claim(&near, None, false), Claim::Nameless);
        let pattern = vec![crate::config::parse_topic_pattern("flows/{client_id}").unwrap()];
        let rights = TopicRights { publish: pattern, ..TopicRights::default() };
        let shared = book(&[("hmi", user(Some("a"), None))], Some(rights));
        let Claim::Proven(nobody) = shared.claim(&near, None, false) else { panic!() };
        assert!(shared.rights(&nobody, "c").may_publish(&Topic::new("flows/c").unwrap()));
        assert!(!shared.rights(&nobody, "c").may_publish(&Topic::new("flows/d").unwrap()));
        assert_eq!(shared.claim(&peer("192.0.2.1:1", None, &[]), None, false), Claim::Nameless, "not from elsewhere");
        let wrong = shared.claim(&near, Some("nobody"), true);
        assert_eq!(wrong, Claim::Password { user: Arc::from("nobody"), hash: None }, "a wrong name is not no name");
        assert_eq!(shared.claim(&near, Some("hmi"), false), Claim::Unproven { user: Arc::from("hmi") });
    }

    #[test]
    fn a_certificate_is_the_user_that_it_names_and_no_other() {
        let plant = plant();
        let plc7 = peer("192.0.2.1:1", Some("plc7"), &[]);
        assert_eq!(proven(plant.claim(&plc7, None, false)).as_deref(), Some("plc7"));
        assert_eq!(proven(plant.claim(&plc7, Some("plc7"), true)).as_deref(), Some("plc7"));
        assert_eq!(
            proven(plant.claim(&peer("192.0.2.1:1", None, &["x", "urn:plc9"]), None, false)).as_deref(),
            Some("plc9")
        );
        assert_eq!(plant.claim(&peer("192.0.2.1:1", None, &["plc7"]), None, false), Claim::Nameless, "CN is not SAN");
        assert_eq!(plant.claim(&plc7, Some("plc9"), false), Claim::Unproven { user: Arc::from("plc9") });
        let other = plant.claim(&plc7, Some("hmi"), true);
        assert_eq!(other, Claim::Password { user: Arc::from("hmi"), hash: Some(hash("a")) });
        let unfit = plant.claim(&peer("192.0.2.1:1", None, &[]), Some("plc7"), true);
        assert_eq!(unfit, Claim::Password { user: Arc::from("plc7"), hash: None }, "he has no password to guess");
    }

    #[test]
    fn what_somebody_showed_is_good_for_as_long_as_it_is_in_the_configuration() {
        let by_password = Identity { user: Arc::from("hmi"), proof: Proof::Password(Box::new(hash("a"))) };
        let by_certificate = Identity { user: Arc::from("plc7"), proof: Proof::Certificate(common("plc7")) };
        let nobody = Identity { user: Arc::from(""), proof: Proof::Place };
        assert!(plant().vouches_for(&by_password) && plant().vouches_for(&by_certificate));
        assert!(!plant().vouches_for(&nobody) && book(&[], None).vouches_for(&nobody));
        let other = book(&[("hmi", user(Some("b"), None)), ("plc8", user(None, Some(common("plc7"))))], None);
        assert!(!other.vouches_for(&by_password), "the password is another");
        assert!(!other.vouches_for(&by_certificate), "the certificate is somebody else's");
        assert_eq!(plant().rights(&nobody, "c"), Rights::nothing());
        let unknown = Identity { user: Arc::from("gone"), ..by_password };
        assert_eq!(other.rights(&unknown, "c"), Rights::nothing());
    }
}
