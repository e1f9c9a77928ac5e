//! `tidegate status`: asks the running gateway how it is.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::words::grouped;
use super::{Exit, block_on};
use crate::clock::{Clock, ClockSource};
use crate::control::{self, Request};
use crate::health::{Alarm, LossReason, chain};

/// Problems that a person is shown; `--json` has all that are kept.
const PROBLEMS_SHOWN: usize = 5;

/// How often `--watch` and `--wait` ask again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// `tidegate status`
#[derive(Debug, clap::Args)]
pub(super) struct StatusArguments {
    /// Configuration file, for where the state directory is
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory, instead of the configuration's
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// Print again every second until interrupted
    #[arg(long, conflicts_with_all = ["json", "wait"])]
    watch: bool,
    /// Wait for a state: exit status 0 when reached, 75 when not
    #[arg(long, value_name = "STATE", value_parser = ["healthy"])]
    wait: Option<String>,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait", value_parser = super::parse_duration)]
    timeout: Duration,
}

pub(super) fn main(arguments: &StatusArguments) -> Exit {
    let state_dir = match &arguments.state_dir {
        Some(state_dir) => state_dir.clone(),
        None => match super::state_dir(arguments.config.clone()) {
            Ok(state_dir) => state_dir,
            Err(exit) => return exit,
        },
    };
    block_on(async {
        if arguments.wait.is_some() {
            return wait_healthy(&state_dir, arguments).await;
        }
        let mut has_answered = false;
        loop {
            let text = match control::ask(&state_dir, Request::Status).await {
                Ok(answer) if arguments.json => answer,
                Ok(answer) => {
                    let status: Value = serde_json::from_str(&answer).unwrap_or_default();
                    readable(&status, Clock::new(ClockSource::Trusted).now().wall_ms)
                }
                // It is being restarted, perhaps: whoever watches wants to see it come back.
                Err(error) if has_answered => format!("{}\n", chain(&error)),
                Err(error) => {
                    eprintln!("tidegate: {}", chain(&error));
                    eprintln!("help: is the gateway running, and are you root or its user?");
                    if arguments.config.is_none() && arguments.state_dir.is_none() {
                        eprintln!("help: started with --config FILE? then: tidegate status --config FILE");
                    }
                    return Exit::TryAgain;
                }
            };
            has_answered = arguments.watch;
            if arguments.watch && std::io::stdout().is_terminal() {
                // Asked each time: windows change their size.
                let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
                let size = size.filter(|size| size.ws_row > 1 && size.ws_col > 1);
                print_out(&screen(&text, size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))));
            } else {
                print_out(&text);
            }
            if !arguments.watch {
                return Exit::Done;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    })
}

/// A text over the whole of a terminal, without a flicker: what is wider is folded, what is longer is said to be.
fn screen(text: &str, (rows, columns): (usize, usize)) -> String {
    let lines: Vec<String> = text.lines().flat_map(|line| folded(line, columns)).collect();
    let shown = if lines.len() < rows { lines.len() } else { rows.saturating_sub(2) };
    let mut out = String::from("\x1b[H");
    for line in lines.iter().take(shown) {
        out += &format!("{line}\x1b[K\n");
    }
    if shown < lines.len() {
        let more: String = format!("… {} more lines", lines.len() - shown).chars().take(columns).collect();
        out += &format!("{more}\x1b[K\n");
    }
    out + "\x1b[J"
}

/// A time without its milliseconds.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) if time.ends_with('Z') => format!("{whole}Z"),
        _ => time.to_owned(),
    }
}

/// A line in as many as it takes, the further ones below its text; a word that is longer than a line is cut.
fn folded(line: &str, columns: usize) -> Vec<String> {
    const INDENT: &str = "        ";
    let mut lines = Vec::new();
    let mut rest = line;
    loop {
        let indent = if lines.is_empty() || columns < 3 * INDENT.len() { "" } else { INDENT };
        let room = columns.saturating_sub(indent.len()).max(1);
        let Some((end, _)) = rest.char_indices().nth(room) else {
            lines.push(format!("{indent}{rest}"));
            return lines;
        };
        let (head, tail) = rest.split_at(end);
        let (head, tail) = match head.rfind(' ').filter(|_| !tail.starts_with(' ')) {
            Some(space) if !head.get(..space).unwrap_or_default().trim().is_empty() => rest.split_at(space),
            _ => (head, tail),
        };
        lines.push(format!("{indent}{head}"));
        rest = tail.trim_start();
    }
}

async fn wait_healthy(state_dir: &std::path::Path, arguments: &StatusArguments) -> Exit {
    let deadline = Instant::now() + arguments.timeout;
    loop {
        let answer = control::ask(state_dir, Request::Status).await;
        let status: Value = answer.ok().and_then(|answer| serde_json::from_str(&answer).ok()).unwrap_or_default();
        let missing = not_healthy(&status);
        if missing.is_empty() {
            if arguments.json {
                print_out(&format!("{status}\n"));
            }
            return Exit::Done;
        }
        if Instant::now() + ASK_EVERY > deadline {
            eprintln!("tidegate: not healthy within {:?}: {}", arguments.timeout, missing.join(", "));
            return Exit::TryAgain;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// How `twin` and `jobs` stand.
fn service_words(state: &str) -> &str {
    match state {
        "away" => "waits for a connection",
        "asking" => "the cloud was asked",
        "ready" => "in step with the cloud",
        "unheard" => "nobody here has subscribed to jobs, so that none is begun",
        "behind" => "the cloud has not been told all",
        "refused" => "the cloud does not allow it, or something of it; the journal says why",
        other => other,
    }
}

/// What keeps the gateway from being healthy: every uplink connected, every device answering.
fn not_healthy(status: &Value) -> Vec<String> {
    if status.get("version").is_none() {
        return vec!["the gateway does not answer".to_owned()];
    }
    let mut missing: Vec<String> = entries(status, "alarms")
        .filter(|(alarm, _)| Alarm::is_failure(alarm))
        .map(|(_, alarm)| text(alarm, "text").to_owned())
        .collect();
    for (kind, table, good) in [("uplink", "uplinks", "connected"), ("device", "devices", "good")] {
        for (name, entry) in entries(status, table) {
            let state = text(entry, "state");
            if state != good {
                missing.push(format!("{kind} {name} is {state}"));
            }
        }
    }
    missing
}

fn entries<'a>(status: &'a Value, table: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    status.get(table).and_then(Value::as_object).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn readable(status: &Value, wall_ms: i64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail; the results are folded into one that is looked at once.
    let written = write_readable(&mut out, status, wall_ms);
    debug_assert!(written.is_ok());
    out
}

fn write_readable(out: &mut String, status: &Value, wall_ms: i64) -> std::fmt::Result {
    let uptime = Duration::from_secs(number(status, "uptime_s"));
    let (gateway, version) = (text(status, "gateway"), text(status, "version"));
    writeln!(out, "gateway {gateway}, version {version}, up {}, clock {}", span(uptime), clock(status))?;
    let queue = status.get("queue").cloned().unwrap_or_default();
    let (bytes, bytes_max) = (number(&queue, "bytes"), number(&queue, "max_bytes").max(1));
    write!(out, "queue   {} waiting, {} of {}", grouped(number(&queue, "messages")), size(bytes), size(bytes_max))?;
    if let Some(age) = queue.get("oldest_age_s").and_then(Value::as_u64) {
        write!(out, ", oldest {} old", span(Duration::from_secs(age)))?;
    }
    if let Some(left) = queue.get("full_in_s").and_then(Value::as_u64) {
        write!(out, ", full in {} at this rate", span(Duration::from_secs(left)))?;
    }
    writeln!(out)?;
    if number(&queue, "kept") > 0 {
        let (kept, bytes) = (grouped(number(&queue, "kept")), size(number(&queue, "kept_bytes")));
        writeln!(out, "        and {kept} that were delivered, {bytes}, kept for tidegate queue resend")?;
    }
    if let Some(words) = flash_words(status.get("flash").unwrap_or(&Value::Null)) {
        writeln!(out, "flash   {words}")?;
    }
    for (name, uplink) in entries(status, "uplinks") {
        write!(out, "uplink  {name}: {} since {}", text(uplink, "state"), to_the_second(text(uplink, "since")))?;
        write!(out, ", {} in flight", number(uplink, "in_flight"))?;
        let (waiting, delivered) = (number(uplink, "waiting"), number(uplink, "delivered"));
        write!(out, ", {} waiting, {} delivered", grouped(waiting), grouped(delivered))?;
        if number(uplink, "again") > 0 {
            let again = grouped(number(uplink, "again"));
            write!(out, "\n        {again} that were delivered are to be sent again, as a person has ordered")?;
        }
        if let Some(reason) = uplink.get("reason").and_then(Value::as_str) {
            write!(out, "\n        {reason}")?;
        }
        if let Some(drain) = uplink.get("drain").filter(|drain| drain.is_object()) {
            write!(out, "\n        {}", drain_words(drain))?;
        }
        for (service, state) in entries(uplink, "services") {
            write!(out, "\n        {service}: {}", service_words(state.as_str().unwrap_or_default()))?;
        }
        writeln!(out)?;
    }
    for (name, count) in entries(status, "kept_streams") {
        writeln!(out, "kept    {count} messages for {name}, which is no uplink of the configuration any more")?;
        writeln!(out, "        they are delivered when it is back; tidegate queue drop-stream {name} gives them up")?;
    }
    for (name, device) in entries(status, "devices") {
        writeln!(out, "device  {name}: {}", device_words(device, wall_ms))?;
    }
    let sessions = status.get("sessions").cloned().unwrap_or_default();
    write!(out, "clients {} connected", number(&sessions, "connected"))?;
    match (number(&sessions, "kept"), number(&sessions, "waiting")) {
        (0, _) => writeln!(out)?,
        (kept, waiting) => {
            let (sessions, messages) =
                (if kept == 1 { "session" } else { "sessions" }, if waiting == 1 { "message" } else { "messages" });
            writeln!(out, ", {kept} {sessions} kept with {} {messages} waiting", grouped(waiting))?;
        }
    }
    let refusals = sessions.get("refusals").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for refusal in refusals.iter().rev().take(PROBLEMS_SHOWN).rev().filter_map(Value::as_str) {
        writeln!(out, "refused {refusal}")?;
    }
    for (client, count) in entries(status, "unkept_qos0") {
        writeln!(out, "        {client}: {count} QoS 0 messages not kept while the uplink was away")?;
        writeln!(out, "        to keep them, add qos = 1 to the forward rule that matches them")?;
    }
    let mut losses = entries(status, "losses").peekable();
    if losses.peek().is_none() {
        writeln!(out, "losses  none")?;
    }
    for (reason, count) in losses {
        writeln!(out, "losses  {count} {}", loss_words(reason))?;
    }
    write_certificates(out, status)?;
    write_problems(out, status)
}

/// Days before its end from which on a certificate is shown.
const DAYS_SHOWN: i64 = 60;

/// Certificates that end before long; `--json` has all of them.
fn write_certificates(out: &mut String, status: &Value) -> std::fmt::Result {
    let all = status.get("certificates").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for one in all {
        let Some(days) = one.get("days_left").and_then(Value::as_i64).filter(|days| *days < DAYS_SHOWN) else {
            continue;
        };
        let left = if days < 0 { "has ended".to_owned() } else { format!("ends in {days} days") };
        let (of, key) = (text(one, "of"), text(one, "key"));
        writeln!(out, "certif. {of}.{key} {left} ({}): {}", text(one, "until"), text(one, "file"))?;
    }
    Ok(())
}

/// What should not be as it is, and what was not: the last of what the store keeps.
fn write_problems(out: &mut String, status: &Value) -> std::fmt::Result {
    for (_, alarm) in entries(status, "alarms") {
        writeln!(out, "ALARM   {}, since {}", text(alarm, "text"), text(alarm, "time"))?;
    }
    if let Some(salvage) = status.get("salvage").filter(|salvage| !salvage.is_null()) {
        write!(out, "salvage {} messages so far", number(salvage, "salvaged"))?;
        if let Some(waiting) = salvage.get("waiting").and_then(Value::as_u64) {
            write!(out, " of {waiting}")?;
        }
        write!(out, " from {}", text(salvage, "quarantine"))?;
        if salvage.get("waits_for_room").and_then(Value::as_bool) == Some(true) {
            write!(out, ", waiting for room")?;
        }
        writeln!(out)?;
    }
    let problems = status.get("problems").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for problem in problems.iter().rev().take(PROBLEMS_SHOWN).rev() {
        writeln!(out, "problem {} {}", text(problem, "time"), text(problem, "text"))?;
    }
    if let Some(reason) = status.get("last_stop").and_then(Value::as_str) {
        writeln!(out, "before  this start the program ended {reason}")?;
    }
    let is_other = |table: &str, good: &str| {
        entries(status, table)
            .any(|(_, entry)| !matches!(text(entry, "state"), state if state == good || state == "starting"))
    };
    if is_other("uplinks", "connected") || is_other("devices", "good") {
        writeln!(out, "help    `tidegate doctor` says what is wrong and what to change")?;
    }
    Ok(())
}

/// What the memory card bears; nothing before that can be known.
fn flash_words(flash: &Value) -> Option<String> {
    let per_day = flash.get("bytes_per_day")?.as_u64()?;
    let years = flash.get("years_of_10_tb")?.as_u64()?;
    Some(format!("{} written a day; a card that takes 10 TB lasts {} years", size(per_day), grouped(years)))
}

/// A backlog on its way, and when it is gone.
fn drain_words(drain: &Value) -> String {
    let (delivered, left) = (number(drain, "delivered"), number(drain, "left"));
    let mut words = format!("draining: {} % ({delivered} of {}", number(drain, "percent"), delivered + left);
    words += &format!("), {} messages/s", number(drain, "per_s"));
    match drain.get("left_s").and_then(Value::as_u64) {
        Some(left) => words += &format!(", about {} left", span(Duration::from_secs(left))),
        None => words += ", time left not known",
    }
    words
}

/// The state of the clock, with what it means where it is not obvious.
fn clock(status: &Value) -> String {
    let clock = status.get("clock").unwrap_or(&Value::Null);
    let state = text(clock, "state");
    match (state, clock.get("error_ms").and_then(Value::as_u64)) {
        ("unset", _) => "unset (no time service; [gateway] clock = \"trust\" believes it)".to_owned(),
        #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
        ("holdover", Some(error_ms)) => format!("holdover (± {:.1} s)", error_ms as f64 / 1000.0),
        _ => state.to_owned(),
    }
}

/// An interval that is longer than the one asked for by more than a late poll now and then.
const LATE_FACTOR: f64 = 1.25;

/// A device in one line: a dead one has no interval, and its last good answer says how long ago it was well.
fn device_words(device: &Value, wall_ms: i64) -> String {
    let state = text(device, "state");
    let reason = device.get("reason").and_then(Value::as_str);
    let last_good = device.get("last_good").and_then(Value::as_str);
    let mut words = match (state, last_good) {
        ("dead", None) => "never answered".to_owned(),
        ("dead", Some(time)) => match wall_ms_of(time).map(|good| wall_ms.saturating_sub(good)) {
            Some(ago @ 0..) => {
                format!("dead, last good {time} ({} ago)", span(Duration::from_millis(ago.unsigned_abs())))
            }
            // The clock was set in between: how long ago cannot be told.
            _ => format!("dead, last good {time}"),
        },
        _ => state.to_owned(),
    };
    if matches!(state, "good" | "degraded")
        && let Some(interval) = device.get("interval_s").and_then(Value::as_f64)
    {
        words.push_str(&format!(", every {interval:.1} s"));
        // A line that does what was asked of it says no more.
        if let Some(asked) = device.get("asked_s").and_then(Value::as_f64)
            && interval > asked * LATE_FACTOR
        {
            words.push_str(&format!(" instead of {asked:.1} s"));
        }
    }
    if let Some(reason) = reason {
        words.push_str(": ");
        words.push_str(reason);
    }
    if let Some(writes) = device.get("writes").and_then(write_words) {
        words.push_str("\n        writes: ");
        words.push_str(&writes);
    }
    words
}

/// What became of writes to a device; nothing where there were none.
fn write_words(writes: &Value) -> Option<String> {
    let kinds = |key: &str| {
        let kinds = writes.get(key).and_then(Value::as_object).into_iter().flatten();
        kinds.map(|(kind, count)| format!("{} {key} ({kind})", count.as_u64().unwrap_or(0))).collect::<Vec<_>>()
    };
    let counts = |key: &str| Some(number(writes, key)).filter(|count| *count > 0).map(|count| format!("{count} {key}"));
    let mut words: Vec<String> = counts("written").into_iter().collect();
    words.extend(kinds("refused"));
    words.extend(counts("expired"));
    words.extend(kinds("failed"));
    words.extend(counts("unknown"));
    (!words.is_empty()).then(|| words.join(", "))
}

/// Why messages were given up, for a person.
pub(super) fn loss_words(reason: &str) -> &str {
    match LossReason::from_name(reason) {
        Some(LossReason::DroppedOldest) => "dropped: the store was full, and the oldest gave way",
        Some(LossReason::DroppedNewest) => "dropped: the store was full, and the newest was not taken",
        Some(LossReason::Expired) => "dropped: older than max_age",
        Some(LossReason::Rejected) => "refused by the cloud for good, kept as dead letters",
        Some(LossReason::Damaged) => "damaged on the disk",
        Some(LossReason::DeadLetterDropped) => "dead letters gave way to newer ones",
        Some(LossReason::MessageExpired) => "dropped: their own expiry (MQTT 5) had passed",
        Some(LossReason::Quarantined) => "set aside with a damaged store",
        Some(LossReason::StreamDropped) => "dropped with an uplink that was taken out of the configuration",
        Some(LossReason::SessionFull) => "dropped: too much waited for a local client that was away or slow",
        // A newer gateway than this program.
        None => reason,
    }
}

/// Milliseconds since 1970 of a time as the gateway writes it: `2026-11-23T09:20:00.123Z`.
pub(super) fn wall_ms_of(time: &str) -> Option<i64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, milli) = clock.split_once('.')?;
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let are_sane = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !are_sane {
        return None;
    }
    // Years that start in March put the leap day last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + milli.parse::<i64>().ok()?)
}

pub(super) fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes / 1024),
        _ if bytes.is_multiple_of(1_073_741_824) => format!("{} GiB", bytes / 1_073_741_824),
        10_485_760..10_737_418_240 => format!("{} MiB", bytes / 1_048_576),
        _ => format!("{} GiB", bytes / 1_073_741_824),
    }
}

/// Writes to standard output; a reader that left (`| head`) is no fault of ours.
pub(super) fn print_out(text: &str) {
    let _closed = std::io::stdout().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_gateway_is_healthy_when_every_uplink_and_device_is() {
        let status = json!({"version": "1", "uplinks": {"cloud": {"state": "connected"}}, "devices": {}});
        assert!(not_healthy(&status).is_empty());
        let status = json!({"version": "1", "uplinks": {"cloud": {"state": "waiting"}},
            "devices": {"m1": {"state": "dead"}}});
        assert_eq!(not_healthy(&status), ["uplink cloud is waiting", "device m1 is dead"]);
        let status =
            json!({"version": "1", "alarms": {"store-fills": {"text": "filled"}, "store-fails": {"text": "fails"}}});
        assert_eq!(not_healthy(&status), ["fails"], "a store that fills still keeps its promise");
        assert_eq!(not_healthy(&Value::Null), ["the gateway does not answer"]);
    }

    #[test]
    fn what_is_watched_fits_into_its_window() {
        assert_eq!(screen("a\nb\n", (24, 80)), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(screen("a1\nb1\nc1\nd1\ne1\n", (4, 1)), "\x1b[Ha\x1b[K\n1\x1b[K\n…\x1b[K\n\x1b[J");
        assert!(screen("1\n2\n3\n4\n5\n", (5, 80)).contains("… 2 more lines"));
        assert_eq!(
            screen("1\n2\n3\n4\n", (5, 80)).matches('\n').count(),
            4,
            "the last row stays free: it would scroll"
        );
        assert_eq!(screen("", (1, 1)), "\x1b[H\x1b[J");
    }

    #[test]
    fn a_line_that_is_wider_than_its_window_goes_on_below_its_text() {
        let line = "uplink  cloud: waiting since 2026-11-26T15:46:03Z";
        assert_eq!(folded(line, 80), [line]);
        assert_eq!(
            folded(line, 36),
            ["uplink  cloud: waiting since", "        2026-11-26T15:46:03Z"],
            "words stay whole"
        );
        assert_eq!(
            folded("        cannot connect to example.com", 30),
            ["        cannot connect to", "        example.com"]
        );
        assert_eq!(
            folded("ü§€é", 2),
            ["ü§", "€é"],
            "where there is no room for words, nor for the beginning of a line"
        );
        assert_eq!(folded("", 0), [""]);
        for columns in 0..60 {
            let lines = folded(line, columns);
            assert!(lines.iter().all(|line| line.chars().count() <= columns.max(1)), "{columns}: {lines:?}");
            let squeezed: String = lines.concat().split_whitespace().collect();
            assert_eq!(squeezed, line.split_whitespace().collect::<String>(), "{columns}");
        }
        assert_eq!(to_the_second("2026-11-26T15:46:03.900Z"), "2026-11-26T15:46:03Z");
    }

    #[test]
    fn a_person_can_read_it() {
        let status = json!({"version": "1", "gateway": "g", "uptime_s": 61, "clock": {"state": "unset", "error_ms": null, "source": null},
            "queue": {"messages": 3, "bytes": 2048, "max_bytes": 1_073_741_824, "oldest_age_s": 7200},
            "uplinks": {"cloud": {"state": "waiting", "since": "T", "reason": "no route", "drain": null,
                    "services": {"twin": "behind"}},
                "hall": {"drain": {"delivered": 250, "left": 750, "percent": 25, "per_s": 10, "left_s": 75}},
                "late": {"drain": {"delivered": 0, "left": 9, "percent": 0, "per_s": 0, "left_s": null}}},
            "losses": {"expired": 2}, "alarms": {"store-fills": {"time": "T1", "text": "the store is filled to 83 %"}},
            "problems": [{"time": "T2", "text": "moved aside"}], "last_stop": "in order",
            "salvage": {"quarantine": "/q", "salvaged": 7, "waiting": 9, "waits_for_room": true}});
        let text = readable(&status, 0);
        assert!(text.contains("clock unset (no time service; [gateway] clock = \"trust\" believes it)"), "{text}");
        assert!(text.contains("queue   3 waiting, 2048 B of 1 GiB, oldest 2 h old"), "{text}");
        assert!(text.contains("no route\n        twin: the cloud has not been told all\n"), "{text}");
        assert!(text.contains("draining: 25 % (250 of 1000), 10 messages/s, about 1 min left"), "{text}");
        assert!(text.contains("draining: 0 % (0 of 9), 0 messages/s, time left not known"), "{text}");
        let flash = json!({"written": 1, "bytes_per_day": 240_000_000, "years_of_10_tb": 1114});
        assert_eq!(flash_words(&flash).unwrap(), "228 MiB written a day; a card that takes 10 TB lasts 1,114 years");
        assert_eq!(flash_words(&json!({"written": 1, "bytes_per_day": null, "years_of_10_tb": null})), None);
        let holdover = json!({"clock": {"state": "holdover", "error_ms": 1240, "source": "mark"}});
        assert_eq!(clock(&holdover), "holdover (± 1.2 s)");
        assert!(text.contains("losses  2 dropped: older than max_age"), "{text}");
        assert!(text.contains("ALARM   the store is filled to 83 %, since T1"), "{text}");
        assert!(text.contains("salvage 7 messages so far of 9 from /q, waiting for room"), "{text}");
        assert!(text.contains("problem T2 moved aside"), "{text}");
        assert!(text.contains("before  this start the program ended in order"), "{text}");
    }

    #[test]
    fn every_reason_of_a_loss_has_a_phrase() {
        for reason in LossReason::ALL {
            assert_ne!(loss_words(reason.name()), reason.name());
        }
        assert_eq!(loss_words("of-tomorrow"), "of-tomorrow");
    }

    #[test]
    fn a_dead_device_tells_when_it_was_well() {
        let dead = json!({"state": "dead", "reason": "no answer within 500 ms", "interval_s": 1.0,
            "last_good": "2026-11-23T09:20:00.000Z"});
        let three_minutes_later = 1_795_425_600_000 + 180_000;
        assert_eq!(
            device_words(&dead, three_minutes_later),
            "dead, last good 2026-11-23T09:20:00.000Z (3 min ago): no answer within 500 ms"
        );
        assert_eq!(
            device_words(&dead, 0),
            "dead, last good 2026-11-23T09:20:00.000Z: no answer within 500 ms",
            "the clock was set back"
        );
        let never = json!({"state": "dead", "reason": "no answer within 500 ms"});
        assert_eq!(device_words(&never, 0), "never answered: no answer within 500 ms");
        let good = json!({"state": "good", "interval_s": 1.04, "last_good": "2026-11-23T09:20:00.000Z"});
        assert_eq!(device_words(&good, 0), "good, every 1.0 s");
        let late = json!({"state": "good", "interval_s": 3.52, "asked_s": 1.0});
        assert_eq!(device_words(&late, 0), "good, every 3.5 s instead of 1.0 s");
        let in_time = json!({"state": "good", "interval_s": 1.04, "asked_s": 1.0});
        assert_eq!(device_words(&in_time, 0), "good, every 1.0 s");
    }

    #[test]
    fn writes_are_told_where_there_were_any() {
        let device = |writes: Value| device_words(&json!({"state": "good", "writes": writes}), 0);
        let none = json!({"written": 0, "refused": {}, "expired": 0, "failed": {}, "unknown": 0});
        assert_eq!(device(none), "good");
        let some = json!({"written": 3, "refused": {"range": 2}, "expired": 1, "failed": {"differs": 4}, "unknown": 5});
        let words = "3 written, 2 refused (range), 1 expired, 4 failed (differs), 5 unknown";
        assert_eq!(device(some), format!("good\n        writes: {words}"));
    }

    #[test]
    fn times_of_the_gateway_are_read_back() {
        for wall_ms in [0, 951_827_696_789, 1_795_425_600_000, 4_107_542_399_999] {
            assert_eq!(wall_ms_of(&crate::clock::rfc3339(wall_ms)), Some(wall_ms));
        }
        for nonsense in ["", "Z", "2026-11-23", "2026-13-01T00:00:00.000Z", "x-y-zTa:b:c.dZ", "1-1-1T1Z"] {
            assert_eq!(wall_ms_of(nonsense), None, "{nonsense}");
        }
    }
}
