//! `twin`, `jobs` and `thing`: the services of the cloud beside the messages.

use super::super::super::clouds::Profile;
use super::super::super::clouds::services::{JobTopics, TwinKind, TwinTopics, is_aws_name};
use super::super::super::keys;
use super::super::super::units::Wrong;
use super::super::super::walk::{At, Reader, Walk};
use super::super::{Words, fill};

/// Longest name of a thing, and of a shadow.
const THING_BYTES_MAX: usize = 128;
const SHADOW_BYTES_MAX: usize = 64;

const NAME_HELP: &str = "it has letters, digits, `:`, `_` and `-`";

/// What was asked for. The outer `None` is a fault.
pub(super) fn read(
    walk: &mut Walk,
    reader: &Reader<'_>,
    profile: &Profile,
    client_id: Option<&At<String>>,
    words: &Words,
) -> Option<(Option<TwinTopics>, Option<JobTopics>)> {
    let thing = thing(walk, reader, profile, client_id, words);
    let twin = twin(walk, reader, profile, thing.as_deref());
    let jobs = jobs(walk, reader, profile, thing.as_deref());
    Some((twin?, jobs?))
}

/// Under which name the cloud knows the device, where it has one that may differ from the client id.
fn thing(
    walk: &mut Walk,
    reader: &Reader<'_>,
    profile: &Profile,
    client_id: Option<&At<String>>,
    words: &Words,
) -> Option<String> {
    let at = match reader.text(walk, "thing") {
        Some(at) => at,
        None if reader.has("thing") => return None,
        None => At { spot: client_id?.spot, value: client_id?.value.clone(), is_default: true },
    };
    let name = if at.is_default { at.value.clone() } else { fill(walk, "thing", &at, words)? };
    if !profile.has_jobs {
        if !at.is_default {
            let help = Some("leave it out".to_owned());
            walk.findings.problem(at.spot, "`thing` is for AWS IoT Core, for `twin` and `jobs`", help);
        }
        return Some(name);
    }
    let is_wanted = reader.has("thing") || reader.has("twin") || reader.has("jobs");
    if is_wanted && !is_aws_name(&name, THING_BYTES_MAX) {
        let wrong = Wrong::new(format!("{name:?} is no name of a thing")).help(match at.is_default {
            true => "the thing's name is the client id unless `thing` says it",
            false => NAME_HELP,
        });
        walk.wrong(at.spot, "thing", wrong);
        return None;
    }
    Some(name)
}

/// The outer `None` is a fault, the inner one is none.
fn twin(walk: &mut Walk, reader: &Reader<'_>, profile: &Profile, thing: Option<&str>) -> Option<Option<TwinTopics>> {
    if !reader.has("twin") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "twin")?;
    let reader = Reader::open(walk, tree, &keys::TWIN, spot);
    let Some(kind) = profile.twin else {
        let what = format!("{} keeps no twin of a device", profile.title);
        let help = "write profile = \"azure-iot-hub\" or \"aws-iot\", or leave `twin` out".to_owned();
        walk.findings.problem(spot, what, Some(help));
        return None;
    };
    let shadow = reader.text(walk, "shadow");
    if reader.has("shadow") && shadow.is_none() {
        return None;
    }
    if let Some(at) = &shadow {
        if kind != TwinKind::Shadow {
            let help = Some("leave it out".to_owned());
            walk.findings.problem(at.spot, "`shadow` is for AWS IoT Core: a device of Azure has one twin", help);
            return None;
        }
        if !is_aws_name(&at.value, SHADOW_BYTES_MAX) {
            let wrong = Wrong::new(format!("{:?} is no name of a shadow", at.value)).help(NAME_HELP);
            walk.wrong(at.spot, "shadow", wrong);
            return None;
        }
    }
    Some(Some(TwinTopics::new(kind, thing?, shadow.as_ref().map(|at| at.value.as_str()))))
}

/// The outer `None` is a fault, the inner one is none.
fn jobs(walk: &mut Walk, reader: &Reader<'_>, profile: &Profile, thing: Option<&str>) -> Option<Option<JobTopics>> {
    let at = reader.truth(walk, "jobs")?;
    if !at.value {
        return Some(None);
    }
    if !profile.has_jobs {
        let help = "write profile = \"aws-iot\", or leave `jobs` out".to_owned();
        walk.findings.problem(at.spot, "`jobs` are those of AWS IoT Core", Some(help));
        return None;
    }
    Some(Some(JobTopics::new(thing?)))
}
