//! What clouds keep beside messages: a copy of the device's state (Azure's device twin, AWS's shadow) and jobs for it. Their
//! topics. Pure.

/// How a cloud keeps its copy of a device's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwinKind {
    /// Azure's device twin.
    Device,
    /// A shadow of AWS.
    Shadow,
}

impl TwinKind {
    /// Bytes of JSON that may be reported.
    pub fn reported_bytes(self) -> usize {
        match self {
            TwinKind::Device => 32 * 1024,
            // Of the whole document, in which the desired part needs its room too.
            TwinKind::Shadow => 8 * 1024,
        }
    }
}

/// The topics of one twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwinTopics {
    kind: TwinKind,
    /// What stands before each topic of a shadow.
    base: String,
}

impl TwinTopics {
    /// Of the shadow `name` (`None`: the one without a name) of `thing`; a device twin has neither.
    pub fn new(kind: TwinKind, thing: &str, name: Option<&str>) -> TwinTopics {
        let base = match (kind, name) {
            (TwinKind::Device, _) => "$iothub/twin".to_owned(),
            (TwinKind::Shadow, None) => format!("$aws/things/{thing}/shadow"),
            (TwinKind::Shadow, Some(name)) => format!("$aws/things/{thing}/shadow/name/{name}"),
        };
        TwinTopics { kind, base }
    }

    /// Whose.
    pub fn kind(&self) -> TwinKind {
        self.kind
    }

    /// What is heard.
    pub fn filters(&self) -> Vec<String> {
        let tails: &[&str] = match self.kind {
            TwinKind::Device => &["res/#", "PATCH/properties/desired/#"],
            TwinKind::Shadow => &[
                "get/accepted",
                "get/rejected",
                "update/accepted",
                "update/rejected",
                "update/documents",
                "delete/accepted",
            ],
        };
        tails.iter().map(|tail| format!("{}/{tail}", self.base)).collect()
    }

    /// Where it is asked for.
    pub fn get(&self, token: &str) -> String {
        match self.kind {
            TwinKind::Device => format!("{}/GET/?$rid={token}", self.base),
            TwinKind::Shadow => format!("{}/get", self.base),
        }
    }

    /// Where something is reported.
    pub fn update(&self, token: &str) -> String {
        match self.kind {
            TwinKind::Device => format!("{}/PATCH/properties/reported/?$rid={token}", self.base),
            TwinKind::Shadow => format!("{}/update", self.base),
        }
    }

    /// What stands behind the part that all its topics have; `None` = it is not of this twin.
    pub fn tail<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let tail = topic.strip_prefix(self.base.as_str())?.strip_prefix('/')?;
        // A shadow with a name is another one.
        (self.kind == TwinKind::Device || !tail.starts_with("name/")).then_some(tail)
    }
}

/// The topics of a thing's jobs at AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobTopics {
    base: String,
}

impl JobTopics {
    /// Of `thing`.
    pub fn new(thing: &str) -> JobTopics {
        JobTopics { base: format!("$aws/things/{thing}/jobs") }
    }

    /// What is heard.
    pub fn filters(&self) -> Vec<String> {
        let tails = ["notify-next", "start-next/accepted", "start-next/rejected", "+/update/rejected"];
        tails.iter().map(|tail| format!("{}/{tail}", self.base)).collect()
    }

    /// Where the next one is asked for.
    pub fn start_next(&self) -> String {
        format!("{}/start-next", self.base)
    }

    /// Where is said what became of `job`.
    pub fn update(&self, job: &str) -> String {
        format!("{}/{job}/update", self.base)
    }

    /// What stands behind the part that all of them have; `None` = it is none of them.
    pub fn tail<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(self.base.as_str())?.strip_prefix('/')
    }
}

/// Whether AWS takes it as the name of a thing or a shadow, and so a level of a topic without wildcards.
pub fn is_aws_name(text: &str, length_max: usize) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'-');
    !text.is_empty() && text.len() <= length_max && text.bytes().all(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shadow_has_topics_of_its_own() {
        let classic = TwinTopics::new(TwinKind::Shadow, "press-3", None);
        let named = TwinTopics::new(TwinKind::Shadow, "press-3", Some("gateway"));
        assert_eq!(classic.get("1"), "$aws/things/press-3/shadow/get");
        assert_eq!(named.update("1"), "$aws/things/press-3/shadow/name/gateway/update");
        for filter in named.filters() {
            assert!(named.tail(&filter).is_some() && classic.tail(&filter).is_none(), "{filter}");
        }
        assert_eq!(classic.tail("$aws/things/press-3/shadow/get/accepted"), Some("get/accepted"));
        assert_eq!(classic.tail("$aws/things/press-33/shadow/get/accepted"), None);
    }

    #[test]
    fn a_device_twin_is_asked_by_the_number_of_the_request() {
        let twin = TwinTopics::new(TwinKind::Device, "press-3", None);
        assert_eq!(twin.get("7"), "$iothub/twin/GET/?$rid=7");
        assert_eq!(twin.update("7"), "$iothub/twin/PATCH/properties/reported/?$rid=7");
        assert_eq!(twin.tail("$iothub/twin/res/200/?$rid=7"), Some("res/200/?$rid=7"));
        assert_eq!(twin.tail("$iothub/methods/POST/x/?$rid=7"), None);
    }

    #[test]
    fn a_name_has_no_slash_and_no_wildcard() {
        assert!(is_aws_name("press-3:a_B", 128) && is_aws_name("a", 1));
        for wrong in ["", "a/b", "a+", "#", "a b", "ü", "ab"] {
            assert!(!is_aws_name(wrong, 1), "{wrong}");
        }
    }
}
