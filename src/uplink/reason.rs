//! Reason codes in words, for the status page and the journal. Pure.

use crate::mqtt::ReasonCode;

/// What `reason` means to the person who has to mend it.
pub fn meaning(reason: ReasonCode) -> &'static str {
    match reason {
        ReasonCode::SUCCESS => "no reason given",
        ReasonCode::MALFORMED_PACKET => "malformed packet",
        ReasonCode::PROTOCOL_ERROR => "protocol error",
        ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR => "not taken by this server",
        ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => "this protocol version is not supported",
        ReasonCode::CLIENT_IDENTIFIER_NOT_VALID => "the client id is not allowed",
        ReasonCode::BAD_USER_NAME_OR_PASSWORD => "bad user name or password",
        ReasonCode::NOT_AUTHORIZED => "not authorised",
        ReasonCode::SERVER_UNAVAILABLE => "the server cannot serve now",
        ReasonCode::SERVER_BUSY => "the server is busy",
        ReasonCode::BANNED => "this client is banned",
        ReasonCode::SERVER_SHUTTING_DOWN => "the server stops",
        ReasonCode::BAD_AUTHENTICATION_METHOD => "it knows no such method of logging in",
        ReasonCode::KEEP_ALIVE_TIMEOUT => "it heard nothing for too long",
        ReasonCode::SESSION_TAKEN_OVER => "another connection uses the same client id",
        ReasonCode::TOPIC_NAME_INVALID => "the topic is not taken",
        ReasonCode::RECEIVE_MAXIMUM_EXCEEDED => "too many messages in flight",
        ReasonCode::PACKET_TOO_LARGE => "the packet is too large",
        ReasonCode::MESSAGE_RATE_TOO_HIGH => "too many messages a second",
        ReasonCode::QUOTA_EXCEEDED => "a quota is used up",
        ReasonCode::ADMINISTRATIVE_ACTION => "a person closed the connection",
        ReasonCode::PAYLOAD_FORMAT_INVALID => "the body is not what its format says",
        ReasonCode::RETAIN_NOT_SUPPORTED => "retained messages are not supported",
        ReasonCode::QOS_NOT_SUPPORTED => "the QoS is not supported",
        ReasonCode::USE_ANOTHER_SERVER => "use another server for now",
        ReasonCode::SERVER_MOVED => "the server has moved",
        ReasonCode::CONNECTION_RATE_EXCEEDED => "too many connections a second",
        ReasonCode::MAXIMUM_CONNECT_TIME => "the longest time that was allowed",
        _ => "unspecified error",
    }
}

/// Whether the server has enough for the moment: that says nothing of the message it answers.
pub fn is_quota(reason: ReasonCode) -> bool {
    [ReasonCode::QUOTA_EXCEEDED, ReasonCode::MESSAGE_RATE_TOO_HIGH].contains(&reason)
}

/// What the server added in its own words, ready to follow; nothing where it added nothing.
pub fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text:?}") }
}

/// What a person can look at when CONNECT was refused with `reason`.
pub fn remedy(reason: ReasonCode) -> &'static str {
    match reason {
        ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::NOT_AUTHORIZED => {
            "; check username, password_file, client_id"
        }
        ReasonCode::BAD_AUTHENTICATION_METHOD => "; check auth_method",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::CloseReason;
    use super::*;

    #[test]
    fn a_refusal_names_what_to_look_at_and_quotes_only_what_was_said() {
        let refused = |reason, text: &str| CloseReason::Refused { reason, text: text.to_owned() }.to_string();
        assert_eq!(
            refused(ReasonCode::NOT_AUTHORIZED, ""),
            "the cloud refused the connection: not authorised (0x87); check username, password_file, client_id"
        );
        assert_eq!(
            refused(ReasonCode::SERVER_BUSY, "at noon"),
            "the cloud refused the connection: the server is busy (0x89): \"at noon\""
        );
        let ended = CloseReason::Disconnected { reason: ReasonCode::SERVER_SHUTTING_DOWN, text: String::new() };
        assert_eq!(ended.to_string(), "the cloud ended the connection: the server stops (0x8B)");
    }
}
