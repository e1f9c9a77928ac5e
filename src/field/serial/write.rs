//! Carrying out commands, between the questions or beside what the device says by itself.
//!
//! Promises: a command is sent once. Where an answer is configured, it decides; where none comes, the command is told as
//! unknown, because the device may have heard it. A device that does not answer its questions is sent nothing: what waits
//! expires. What comes late from the device is no answer to the next command.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout_at};
use tokio_serial::SerialStream;

use super::command::{self, Answer};
use super::frame::Cut;
use super::parse::decoded;
use super::{Gone, Port};
use crate::config::{Parse, SerialCommand};
use crate::field::lane::{Move, Ticket};
use crate::field::writes::{Act, End};
use crate::health::DeviceState;

/// How long the other side may hold the line (flow control) before a command is given up.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// After a command that was not answered the next one waits so many times as long as it did.
const REST_TIMEOUTS: u32 = 2;

/// What became of a command that was sent.
enum Outcome {
    Ended(End),
    /// The port went away meanwhile.
    Gone(End, Gone),
}

impl Port {
    /// Does what the lane asks for, if the port is open. False: nothing can be done at the moment.
    pub(super) async fn carry_out(
        &mut self,
        stream: Option<&mut SerialStream>,
        now: Duration,
        is_poll_due: bool,
    ) -> Result<bool, Gone> {
        let ready = self.command_at();
        let next = self.writes.next(now, is_poll_due, |_| ready);
        match (next, stream) {
            (None, _) => Ok(false),
            (Some(Move::Expire(ticket)), _) => {
                self.writes.end(ticket, End::Expired);
                Ok(true)
            }
            (Some(_), None) => Ok(false),
            (Some(Move::Ask(ticket)), Some(_)) => Ok(self.writes.ask(ticket)),
            (Some(Move::Write(ticket) | Move::Verify(ticket)), Some(stream)) => {
                self.writes.hold(ticket).await;
                self.writes.lane.took_turn();
                let outcome = self.command(stream, ticket).await;
                let (end, gone) = match outcome {
                    Outcome::Ended(end) => (end, None),
                    Outcome::Gone(end, gone) => (end, Some(gone)),
                };
                self.writes.end(ticket, end);
                self.device.send().await;
                gone.map_or(Ok(true), Err)
            }
        }
    }

    /// From when on a command may be sent.
    pub(super) fn command_at(&self) -> Duration {
        let is_silent =
            self.config.ask.is_some() && matches!(self.device.state(), DeviceState::Starting | DeviceState::Dead);
        if is_silent { Duration::MAX } else { self.commands_rest }
    }

    async fn command(&mut self, stream: &mut SerialStream, ticket: Ticket) -> Outcome {
        let act = self.writes.under(ticket).map(|under| under.order.act.clone());
        let Some(Act::Command { number, bytes, .. }) = act else { return Outcome::Ended(gone_from_here()) };
        let Some(command) = self.config.commands.get(number).cloned() else { return Outcome::Ended(gone_from_here()) };
        if self.config.ask.is_some()
            && let Err(gone) = self.hush(stream).await
        {
            return Outcome::Gone(failed("lost", "it was not sent: the port is gone"), gone);
        }
        let until = Instant::now() + SEND_LIMIT;
        self.note_sent(&bytes);
        let sent = timeout_at(until, stream.write_all(&bytes)).await;
        let unknown =
            |why: &str| End::Unknown { reason: format!("{why}: whether it was carried out is not known"), read: None };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let gone = Gone(format!("the port is gone: {error}").into());
                return Outcome::Gone(unknown("the port went away while it was sent"), gone);
            }
            Err(_) => {
                self.device.count(Some("timeout"), false);
                return Outcome::Ended(unknown("the other side holds the line, and a part of it may have been sent"));
            }
        }
        if command.good.is_none() && command.bad.is_none() {
            self.device.count(None, false);
            return Outcome::Ended(End::Written { read: None });
        }
        match self.answer(stream, &command).await {
            Ok(Ok(end)) => Outcome::Ended(end),
            Ok(Err(why)) => Outcome::Ended(unknown(&why)),
            Err(gone) => Outcome::Gone(unknown("the port went away before an answer came"), gone),
        }
    }

    /// Waits for the answer to a command that was sent; the inner error is why nothing is known.
    async fn answer(
        &mut self,
        stream: &mut SerialStream,
        command: &SerialCommand,
    ) -> Result<Result<End, String>, Gone> {
        let deadline = Instant::now() + command.timeout;
        let mut other = None;
        while let Some(cuts) = self.hear(stream, deadline).await? {
            let mut end = None;
            for cut in cuts {
                let answer = match &cut {
                    Cut::Frame(frame) if end.is_none() => command::judged(command, &self.reader, frame.body()),
                    _ => None,
                };
                match (answer, &cut) {
                    (Some(Answer::Good(value)), Cut::Frame(frame)) => {
                        if self.fits(frame.body()) {
                            self.take(&cut);
                        }
                        end = Some(End::Written { read: Some(value) });
                    }
                    (Some(Answer::Bad(text)), Cut::Frame(_)) => {
                        end = Some(failed("refused", &format!("the device says {text:?}")))
                    }
                    // An echo, or something that neither pattern knows: told if nothing better comes.
                    (None, Cut::Frame(frame)) if !self.fits(frame.body()) => {
                        other = Some(command::shortened(&decoded(frame.body())));
                    }
                    _ => {
                        self.take(&cut);
                    }
                }
            }
            if let Some(end) = end {
                self.device.count(None, false);
                self.spoke();
                return Ok(Ok(end));
            }
        }
        let ms = command.timeout.as_millis();
        if command.good.is_none() && other.is_none() {
            self.device.count(None, false);
            return Ok(Ok(End::Written { read: None }));
        }
        self.device.count(Some("timeout"), false);
        self.commands_rest = self.start.elapsed() + command.timeout * REST_TIMEOUTS;
        let why = match other {
            None => format!("no answer within {ms} ms"),
            Some(text) => format!("the device says {text:?}, and nothing else within {ms} ms"),
        };
        if matches!(self.config.parse, Parse::Nothing) {
            self.device.set_state(DeviceState::Degraded, Some(why.as_str().into()));
        }
        Ok(Err(why))
    }

    /// A device of which nothing is read is well when it answers.
    fn spoke(&mut self) {
        if matches!(self.config.parse, Parse::Nothing) {
            self.device.set_state(DeviceState::Good, None);
        }
    }
}

fn gone_from_here() -> End {
    failed("not-writable", "there is no such command any more")
}

fn failed(kind: &'static str, reason: &str) -> End {
    End::Failed { kind, reason: reason.to_owned(), read: None }
}
