//! What an answer by HTTP means for the messages that were sent. Pure.
//!
//! Promise: nothing is given up but what the server refuses for what it is. A wrong address, a wrong token, a busy or broken
//! server cost time only.

use std::time::Duration;

/// Longest text of a server that is shown.
const SHOWN_MAX: usize = 200;

/// The longest pause that a server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// An answer, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The code.
    pub status: u16,
    /// `Retry-After`, as it came.
    pub retry_after: Option<String>,
    /// The beginning of the body.
    pub body: Vec<u8>,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// The server has it.
    Delivered,
    /// Nothing may be sent for a while: so long, if the server said.
    Later {
        /// By `Retry-After`.
        after: Option<Duration>,
        /// For a person.
        reason: String,
    },
    /// The server failed at this one; others may pass.
    Trouble {
        /// For a person.
        reason: String,
    },
    /// Somebody has to mend the configuration, here or there; the messages are good.
    Held {
        /// For a person.
        reason: String,
    },
    /// The server does not take this one: a batch is halved, down to the message at fault.
    Refused {
        /// For a person.
        reason: String,
    },
}

/// What `answer` means, at `wall_ms`.
pub fn judge(answer: &Answer, wall_ms: i64) -> Judgement {
    let reason = said(answer);
    match answer.status {
        200..=299 => Judgement::Delivered,
        // 409: the server is still at the first one of this idempotency key.
        408 | 409 | 425 | 429 | 502..=504 => Judgement::Later { after: pause(answer, wall_ms), reason },
        400 | 413 | 414 | 422 | 431 => Judgement::Refused { reason },
        500.. => match pause(answer, wall_ms) {
            Some(after) => Judgement::Later { after: Some(after), reason },
            None => Judgement::Trouble { reason },
        },
        // Logins, addresses, methods, redirections, which nobody follows with a body and a token in hand.
        _ => Judgement::Held { reason },
    }
}

/// The status, what it asks for, and what the server wrote.
fn said(answer: &Answer) -> String {
    let meaning = match answer.status {
        300..=399 => "a redirection: write the address where it leads to in `url`",
        400 => "it does not take this message",
        401 => "not logged in: see `password_file` and `username`",
        403 => "not allowed",
        404 => "there is nothing at this address",
        405 => "it takes no POST at this address",
        408 => "too slow",
        409 => "a conflict",
        413 => "the message is too large",
        415 => "it does not take this type of content, or none that is compressed",
        422 => "it cannot work with this message",
        429 => "too many requests",
        503 => "it cannot serve now",
        500.. => "the server failed",
        _ => "it answered",
    };
    let text = text(&answer.body);
    let text = if text.is_empty() { text } else { format!(": \"{text}\"") };
    format!("{meaning} ({}){text}", answer.status)
}

/// What the server wrote: the word for its fault, where it answers in JSON.
fn text(body: &[u8]) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let word = json
        .as_ref()
        .and_then(|json| ["message", "error", "detail", "title"].iter().find_map(|key| json.get(*key)?.as_str()));
    let whole = String::from_utf8_lossy(body);
    let text = word.unwrap_or(&whole);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn pause(answer: &Answer, wall_ms: i64) -> Option<Duration> {
    let text = answer.retry_after.as_deref()?.trim();
    let pause = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_date) => Duration::from_millis(u64::try_from(date_ms(text)?.saturating_sub(wall_ms)).unwrap_or(0)),
    };
    Some(pause.min(PAUSE_MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7), in milliseconds since 1970.
fn date_ms(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let mut words = date.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month_name = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month_name)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock =
        words.next()?.split(':').map(|part| part.parse::<i64>().ok().filter(|part| (0..=60).contains(part)));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next() != Some("GMT") || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 (eras of 400 years that start on 1 March).
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&str>, body: &str) -> Answer {
        Answer { status, retry_after: retry_after.map(str::to_owned), body: body.as_bytes().to_vec() }
    }

    fn later(status: u16, retry_after: &str) -> Option<u64> {
        match judge(&answer(status, Some(retry_after), ""), 784_111_777_000) {
            Judgement::Later { after, .. } => after.map(|after| after.as_secs()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_the_server_refuses_for_what_it_is_is_refused() {
        for status in 100..=999 {
            let judgement = judge(&answer(status, None, ""), 0);
            let is_refused = matches!(judgement, Judgement::Refused { .. });
            assert_eq!(is_refused, [400, 413, 414, 422, 431].contains(&status), "{status}");
            assert_eq!(judgement == Judgement::Delivered, (200..300).contains(&status), "{status}");
        }
        assert!(matches!(judge(&answer(500, None, ""), 0), Judgement::Trouble { .. }));
        assert!(matches!(judge(&answer(404, None, ""), 0), Judgement::Held { .. }));
        assert!(matches!(judge(&answer(307, None, ""), 0), Judgement::Held { .. }));
    }

    #[test]
    fn a_pause_is_said_in_seconds_or_as_a_date_and_has_a_bound() {
        assert_eq!(later(429, "7"), Some(7));
        assert_eq!(later(503, " 12 "), Some(12));
        assert_eq!(later(500, "3"), Some(3));
        assert_eq!(later(429, "99999999999"), Some(3600));
        assert_eq!(later(503, "Sun, 06 Nov 1994 08:49:47 GMT"), Some(10));
        assert_eq!(later(503, "Sun, 06 Nov 1994 08:49:07 GMT"), Some(0), "it has passed");
        assert_eq!(later(503, "soon"), None);
        assert_eq!(date_ms("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(date_ms("Tue, 29 Feb 2028 00:00:00 GMT"), Some(1_835_395_200_000));
        for odd in ["Sun, 6 No", "Sun, 06 Foo 1994 08:49:37 GMT", "x, 99 Nov 1994 08:49:37 GMT", "a, 1 Jan 1 1:1:1 GMT"]
        {
            assert_eq!(date_ms(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_person_reads_the_code_and_what_the_server_wrote() {
        let words = |status, body| match judge(&answer(status, None, body), 0) {
            Judgement::Refused { reason } | Judgement::Held { reason } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            words(400, r#"{"error":"partial write: field type conflict\n dropped=1"}"#),
            "it does not take this message (400): \"partial write: field type conflict dropped=1\""
        );
        assert_eq!(words(401, ""), "not logged in: see `password_file` and `username` (401)");
        assert!(words(404, &"x".repeat(10_000)).len() < 300);
    }
}
