//! What was found, and how it is told: one line each, with what to change below it. Pure but for printing.

use super::super::Exit;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works, and will not for long, or not as it is meant.
    Unsure,
    /// Somebody must change something: here, or at the cloud.
    Wrong,
    /// It may work by itself later.
    Away,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    step: &'static str,
    verdict: Verdict,
    what: String,
    help: Option<String>,
}

impl Finding {
    pub(super) fn good(step: &'static str, what: impl Into<String>) -> Finding {
        Finding { step, verdict: Verdict::Good, what: what.into(), help: None }
    }

    pub(super) fn unsure(step: &'static str, what: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Unsure, ..Finding::good(step, what) }
    }

    pub(super) fn wrong(step: &'static str, what: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Wrong, ..Finding::good(step, what) }
    }

    pub(super) fn away(step: &'static str, what: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Away, ..Finding::good(step, what) }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Finding {
        self.help = Some(help.into());
        self
    }

    /// Several things to do, the likeliest first.
    pub(super) fn helps(self, helps: &[String]) -> Finding {
        if helps.is_empty() { self } else { self.help(helps.join("\n        help: ")) }
    }

    fn text(&self) -> String {
        let mark = match self.verdict {
            Verdict::Good => "ok   ",
            Verdict::Unsure => "note ",
            Verdict::Wrong => "WRONG",
            Verdict::Away => "AWAY ",
        };
        let mut text = format!("  {mark} {:<12} {}", self.step, self.what);
        if let Some(help) = &self.help {
            text.push_str(&format!("\n        help: {help}"));
        }
        text
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub(super) struct Report {
    wrong: usize,
    away: usize,
}

impl Report {
    pub(super) fn title(&mut self, title: &str) {
        println!("{title}");
    }

    /// Tells it. Whether it is no reason to stop here.
    pub(super) fn note(&mut self, finding: Finding) -> bool {
        println!("{}", finding.text());
        self.wrong += usize::from(finding.verdict == Verdict::Wrong);
        self.away += usize::from(finding.verdict == Verdict::Away);
        matches!(finding.verdict, Verdict::Good | Verdict::Unsure)
    }

    /// What is to be mended goes before what may mend itself.
    pub(super) fn end(&self) -> Exit {
        match (self.wrong, self.away) {
            (0, 0) => {
                println!("Nothing is wrong.");
                Exit::Done
            }
            (0, away) => {
                println!("{away} not reached.");
                Exit::TryAgain
            }
            (wrong, _) => {
                println!("{wrong} wrong.");
                Exit::Config
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_mended_decides_over_what_is_away() {
        let mut report = Report::default();
        assert!(report.note(Finding::good("a", "b")) && report.note(Finding::unsure("a", "b")));
        assert_eq!(report.end(), Exit::Done);
        assert!(!report.note(Finding::away("a", "b")));
        assert_eq!(report.end(), Exit::TryAgain);
        assert!(!report.note(Finding::wrong("a", "b").help("c")));
        assert_eq!(report.end(), Exit::Config);
        assert_eq!(Finding::wrong("tls", "no").help("do").text(), "  WRONG tls          no\n        help: do");
    }
}
