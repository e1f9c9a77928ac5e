//! The rules about users, groups, and who comes without a name.

use std::collections::HashMap;

use crate::config::ListenerAddress;
use crate::config::access::CertificateName;
use crate::config::file::{Draft, UserDraft};
use crate::config::tree::Spot;
use crate::config::units::Wrong;
use crate::config::walk::{Walk, nearest};

pub(super) fn check(walk: &mut Walk, draft: &Draft) {
    for user in &draft.users {
        proofs(walk, user);
        groups(walk, draft, user);
    }
    certificates(walk, draft);
    tokens(walk, draft);
    doors(walk, draft);
    anonymous(walk, draft);
    unused(walk, draft);
}

/// By what a user shows who he is.
fn proofs(walk: &mut Walk, user: &UserDraft) {
    if !user.has_password && !user.has_certificate && !user.by_token && !walk.is_partial {
        let what = format!("the user `{}` cannot log in: he has neither `password_hash` nor `certificate`", user.name);
        let help =
            format!("`tidegate passwd {}` prints the line; or write certificate = \"CN={}\"", user.name, user.name);
        walk.findings.problem(user.spot, what, Some(help));
    }
    let may_nothing =
        user.rights.as_ref().is_some_and(|rights| rights.publish.is_empty() && rights.subscribe.is_empty());
    if may_nothing && user.groups.is_empty() && !walk.is_partial {
        let what = format!("the user `{}` may neither publish nor subscribe to anything", user.name);
        let help = "write publish = [\"…\"] or subscribe = [\"…\"], or name his `groups`".to_owned();
        walk.findings.warning(user.spot, what, Some(help));
    }
}

fn groups(walk: &mut Walk, draft: &Draft, user: &UserDraft) {
    for group in &user.groups {
        if walk.is_partial || draft.groups.iter().any(|known| *known.name == group.value) {
            continue;
        }
        let help = match nearest(&group.value, draft.groups.iter().map(|known| known.name.as_ref())) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("write [broker.group.{}]", group.value),
        };
        walk.wrong(group.spot, "groups", Wrong::new(format!("there is no group {:?}", group.value)).help(help));
    }
}

/// Whoever shows a token may do what somebody says.
fn tokens(walk: &mut Walk, draft: &Draft) {
    if walk.is_partial {
        return;
    }
    let Some((tokens, spot)) = &draft.tokens else {
        for user in draft.users.iter().filter(|user| user.by_token) {
            let what = format!("`jwt` of `{}` needs [broker.jwt]: nobody says whose tokens are good", user.name);
            let help = "write [broker.jwt] with `keys` and `audience`".to_owned();
            walk.findings.problem(user.spot, what, Some(help));
        }
        return;
    };
    let Some(tokens) = tokens else { return };
    let may_nothing = tokens.rights.publish.is_empty() && tokens.rights.subscribe.is_empty();
    if may_nothing && draft.groups.is_empty() && !draft.users.iter().any(|user| user.by_token) {
        let what = "whoever shows a token may neither publish nor subscribe to anything";
        let help =
            "write publish = [\"…\"] or subscribe = [\"…\"], or [broker.group.<name>] for the groups that tokens name";
        walk.findings.warning(*spot, what, Some(help.to_owned()));
    }
}

/// Who comes from another machine needs a name: without users a listener for him would let nobody in.
fn doors(walk: &mut Walk, draft: &Draft) {
    if walk.is_partial || !draft.users.is_empty() || draft.tokens.is_some() {
        return;
    }
    for bind in draft.listeners.iter().filter_map(|listener| listener.bind.as_ref()) {
        let ListenerAddress::Network(address) = bind.value else { continue };
        if address.ip().is_loopback() {
            continue;
        }
        let what = format!("{} is reached from other machines, and there is no user who could log in", address.ip());
        let help = format!(
            "write [broker.user.<name>]: `tidegate passwd NAME` prints the lines; or \"127.0.0.1:{}\" for this machine only",
            address.port()
        );
        walk.wrong(bind.spot, "bind", Wrong::new(what).help(help));
    }
}

fn certificates(walk: &mut Walk, draft: &Draft) {
    let mut seen: HashMap<&CertificateName, Spot> = HashMap::new();
    for certificate in draft.users.iter().filter_map(|user| user.certificate.as_ref()) {
        let Some(first) = seen.insert(&certificate.value, certificate.spot) else { continue };
        let what = format!("two users show this certificate, here and at {}", walk.findings.name(first));
        walk.findings.problem(certificate.spot, what, Some("a certificate is one user: give each its own".to_owned()));
    }
}

fn anonymous(walk: &mut Walk, draft: &Draft) {
    let Some(anonymous) = &draft.anonymous else { return };
    let Some(rights) = &anonymous.rights else { return };
    let mut all = rights.publish.iter().chain(&rights.subscribe).chain(&rights.deny);
    if let Some(pattern) = all.find(|pattern| pattern.names_user()) {
        let what = format!("who has no name has no {{username}}, and {:?} asks for it", pattern.as_str());
        walk.findings.problem(anonymous.spot, what, Some("write {client_id}, or leave it out".to_owned()));
    }
}

fn unused(walk: &mut Walk, draft: &Draft) {
    // A token may name any group.
    if walk.is_partial || draft.tokens.is_some() {
        return;
    }
    for group in &draft.groups {
        let is_used = draft.users.iter().any(|user| user.groups.iter().any(|name| name.value == *group.name));
        if !is_used {
            walk.findings.warning(group.spot, format!("no user is in the group `{}`", group.name), None);
        }
    }
}
