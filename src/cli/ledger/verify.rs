//! What the cloud has, against what the ledger says is delivered.
//!
//! Promises: every message that the ledger knows one by one and the file lacks is named; where the ledger has only a sum,
//! a shortage is counted. A file of any length is read row by row; what is kept is eight bytes a row, to a bound.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Serialize;

use crate::cli::words::grouped;
use crate::message::MessageId;
use crate::queue::ledger::{IdLine, Report, ReportLine};

/// Rows of one file; at eight bytes each, twice.
const ROWS_MAX: u64 = 50_000_000;
/// Missing runs that are printed of one line.
const RUNS_SHOWN: usize = 6;

/// The numbers of one device, or the counters of one start, sorted.
#[derive(Debug, Default)]
struct Numbers(Vec<u64>);

impl Numbers {
    fn of(&self, first: u64, last: u64) -> &[u64] {
        let from = self.0.partition_point(|number| *number < first);
        let to = self.0.partition_point(|number| *number <= last);
        self.0.get(from..to).unwrap_or_default()
    }

    /// Sorts them and gives back how many stood there before.
    fn settle(&mut self) -> u64 {
        let before = self.0.len();
        self.0.sort_unstable();
        self.0.dedup();
        (before - self.0.len()) as u64
    }
}

/// A file of the cloud.
#[derive(Debug, Default)]
pub(super) struct Export {
    devices: Option<BTreeMap<String, Numbers>>,
    ids: Option<BTreeMap<(String, u64, u32), Numbers>>,
    rows: u64,
    repeated: u64,
    /// Rows without a number or an id that can be read.
    unreadable: u64,
}

impl Export {
    /// Reads the rows. The error is for a person.
    pub fn read(file: impl Read) -> Result<Export, String> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(file);
        let headers = reader.headers().map_err(|error| error.to_string())?.clone();
        let column = |name: &str| {
            headers.iter().position(|header| header.trim_start_matches('\u{feff}').eq_ignore_ascii_case(name))
        };
        let by_seq = column("device").zip(column("seq"));
        let by_id = column("id");
        if by_seq.is_none() && by_id.is_none() {
            let found: Vec<&str> = headers.iter().collect();
            return Err(format!("it needs a column `id`, or `device` and `seq`; its header is {:?}", found.join(",")));
        }
        let mut export = Export {
            devices: by_seq.map(|_| BTreeMap::new()),
            ids: by_id.map(|_| BTreeMap::new()),
            ..Export::default()
        };
        let mut row = csv::StringRecord::new();
        while reader.read_record(&mut row).map_err(|error| error.to_string())? {
            export.rows += 1;
            if export.rows > ROWS_MAX {
                return Err(format!("it has more than {} rows: export a month at a time", grouped(ROWS_MAX)));
            }
            let mut is_read = false;
            if let (Some((device, seq)), Some(devices)) = (by_seq, &mut export.devices) {
                let seq = row.get(seq).and_then(|seq| seq.parse::<u64>().ok());
                if let (Some(device), Some(seq)) = (row.get(device).filter(|device| !device.is_empty()), seq) {
                    match devices.get_mut(device) {
                        Some(numbers) => numbers.0.push(seq),
                        None => drop(devices.insert(device.to_owned(), Numbers(vec![seq]))),
                    }
                    is_read = true;
                }
            }
            if let (Some(id), Some(ids)) = (by_id, &mut export.ids)
                && let Some(Ok(id)) = row.get(id).map(str::parse::<MessageId>)
            {
                ids.entry((id.gateway.to_string(), id.store, id.start)).or_default().0.push(id.counter);
                is_read = true;
            }
            export.unreadable += u64::from(!is_read);
        }
        let by_seq: u64 = export.devices.iter_mut().flat_map(BTreeMap::values_mut).map(Numbers::settle).sum();
        let by_id: u64 = export.ids.iter_mut().flat_map(BTreeMap::values_mut).map(Numbers::settle).sum();
        export.repeated = if export.ids.is_some() { by_id } else { by_seq };
        Ok(export)
    }
}

/// One line of the result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Checked {
    /// The day.
    day: String,
    /// A device, or the ids of one start.
    source: String,
    /// What the ledger says.
    delivered: u64,
    /// Those of them that are in the file.
    found: u64,
    /// Those that are not.
    missing: u64,
    /// Their numbers, where the ledger knows them.
    missing_numbers: Vec<(u64, u64)>,
    /// In the file, accepted, and not yet known to be delivered.
    early: u64,
    /// Only the sums were compared.
    is_by_count: bool,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// All of it.
    pub missing: u64,
    /// For each day and device, or start.
    lines: Vec<Checked>,
    /// Rows of the file.
    rows: u64,
    /// Rows that stood there before.
    repeated: u64,
    /// Rows of this gateway of which the ledger knows nothing, or of no gateway at all.
    unknown: u64,
    /// Rows that could not be read.
    unreadable: u64,
    /// Delivered messages that the file cannot show, because they bear no device and it has no ids.
    not_looked_at: u64,
}

/// Compares.
pub(super) fn verify(report: &Report, export: &Export) -> Verdict {
    let mut verdict =
        Verdict { rows: export.rows, repeated: export.repeated, unreadable: export.unreadable, ..Verdict::default() };
    let nothing = Numbers::default();
    if let Some(devices) = &export.devices {
        let mut known: u64 = 0;
        for line in report.lines.iter().filter(|line| line.is_device) {
            let numbers = devices.get(&line.source).unwrap_or(&nothing);
            verdict.lines.push(device_line(line, numbers));
        }
        for (device, numbers) in devices {
            let hulls = report.lines.iter().filter(|line| line.is_device && line.source == *device);
            known += known_in(numbers, hulls.filter_map(|line| line.numbers));
        }
        let all: usize = devices.values().map(|numbers| numbers.0.len()).sum();
        verdict.unknown = (all as u64).saturating_sub(known);
    }
    if let Some(ids) = &export.ids {
        let (mut known, mut checked) = (0, Vec::new());
        for line in &report.ids {
            let numbers = ids.get(&(report.gateway.clone(), line.store, line.start)).unwrap_or(&nothing);
            checked.push(id_line(line, numbers));
        }
        for ((gateway, store, start), numbers) in ids {
            let is_of = |line: &&IdLine| *gateway == report.gateway && line.store == *store && line.start == *start;
            known += known_in(numbers, report.ids.iter().filter(is_of).filter_map(|line| line.counters));
        }
        let all: usize = ids.values().map(|numbers| numbers.0.len()).sum();
        verdict.unknown = (all as u64).saturating_sub(known);
        verdict.lines.extend(checked);
    } else {
        let nameless = report.lines.iter().filter(|line| !line.is_device);
        verdict.not_looked_at = nameless.map(|line| line.delivered).sum();
    }
    // With both kinds of columns the same loss shows twice.
    let of = |is_id: bool| -> u64 {
        verdict.lines.iter().filter(|line| line.source.starts_with(ID_MARK) == is_id).map(|line| line.missing).sum()
    };
    verdict.missing = of(true).max(of(false));
    verdict
}

/// How many of `numbers` lie in any of `hulls`.
fn known_in(numbers: &Numbers, hulls: impl Iterator<Item = (u64, u64)>) -> u64 {
    let mut hulls: Vec<(u64, u64)> = hulls.collect();
    hulls.sort_unstable();
    let (mut known, mut from) = (0, 0);
    for (first, last) in hulls {
        if last >= from {
            known += numbers.of(first.max(from), last).len() as u64;
            from = last.saturating_add(1);
        }
    }
    known
}

const ID_MARK: &str = "ids of ";

fn device_line(line: &ReportLine, numbers: &Numbers) -> Checked {
    let named = Checked {
        day: line.day.clone(),
        source: line.source.clone(),
        delivered: line.delivered,
        is_by_count: line.is_loose,
        ..Checked::default()
    };
    checked(named, &line.delivered_numbers, line.numbers, numbers)
}

fn id_line(line: &IdLine, numbers: &Numbers) -> Checked {
    let named = Checked {
        day: line.day.clone(),
        source: format!("{ID_MARK}start {}", line.start),
        delivered: line.delivered,
        is_by_count: line.is_loose,
        ..Checked::default()
    };
    checked(named, &line.delivered_counters, line.counters, numbers)
}

fn checked(mut line: Checked, runs: &[(u64, u64)], hull: Option<(u64, u64)>, numbers: &Numbers) -> Checked {
    let mut inside = 0;
    for (first, last) in runs {
        let found = numbers.of(*first, *last);
        inside += found.len() as u64;
        let mut next = *first;
        for number in found.iter().copied().chain([last.saturating_add(1)]) {
            if number > next && !line.is_by_count {
                line.missing_numbers.push((next, number - 1));
            }
            next = number.saturating_add(1);
        }
    }
    let accepted = hull.map_or(0, |(first, last)| numbers.of(first, last).len() as u64);
    line.early = accepted.saturating_sub(inside);
    line.found = inside.min(line.delivered);
    line.missing = if line.is_by_count {
        line.delivered.saturating_sub(inside)
    } else {
        line.missing_numbers.iter().map(|(first, last)| last - first + 1).sum()
    };
    line
}

impl Verdict {
    /// For a person, in 80 columns.
    pub fn readable(&self, report: &Report) -> String {
        let mut text = format!(
            "ledger of {} against {} rows of the cloud\n\n{:10} {:22} {:>10} {:>10} {:>9} {:>9}\n",
            report.gateway,
            grouped(self.rows),
            "day",
            "source",
            "delivered",
            "in file",
            "missing",
            "early"
        );
        for line in &self.lines {
            let source: String = line.source.chars().take(22).collect();
            text.push_str(&format!(
                "{:10} {source:22} {:>10} {:>10} {:>9} {:>9}\n",
                line.day,
                grouped(line.delivered),
                grouped(line.found),
                grouped(line.missing),
                grouped(line.early),
            ));
            if line.is_by_count && line.missing > 0 {
                text.push_str("           by count: which ones is not known\n");
            }
            for (first, last) in line.missing_numbers.iter().take(RUNS_SHOWN) {
                let which = if first == last { first.to_string() } else { format!("{first} to {last}") };
                text.push_str(&format!("           missing: {which}\n"));
            }
            if line.missing_numbers.len() > RUNS_SHOWN {
                text.push_str(&format!("           and {} runs more\n", line.missing_numbers.len() - RUNS_SHOWN));
            }
        }
        text.push('\n');
        let mut say = |count: u64, words: &str| {
            if count > 0 {
                text.push_str(&format!("{} {words}\n", grouped(count)));
            }
        };
        say(self.repeated, "rows repeat an earlier one: drop them by their id");
        say(self.unknown, "rows are of other gateways, or of days that the ledger does not have here");
        say(self.unreadable, "rows have no id and no device with a number");
        say(self.not_looked_at, "delivered messages are of no device: only a column `id` can show them");
        if self.lines.iter().any(|line| line.early > 0) {
            text.push_str("early: the cloud has it, and its acknowledgement is not in the ledger\n");
        }
        if self.missing == 0 {
            text.push_str("All that the ledger says is delivered is in the file.\n");
        } else {
            text.push_str(&format!(
                "MISSING: {}. Delivered, as the ledger says, and not in the file.\n",
                grouped(self.missing)
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(day: &str, delivered: &[(u64, u64)], accepted: (u64, u64)) -> ReportLine {
        ReportLine {
            day: day.to_owned(),
            uplink: "cloud".to_owned(),
            source: "m01".to_owned(),
            is_device: true,
            delivered: delivered.iter().map(|(first, last)| last - first + 1).sum(),
            numbers: Some(accepted),
            delivered_numbers: delivered.to_vec(),
            ..ReportLine::default()
        }
    }

    fn report() -> Report {
        Report {
            gateway: "g7".to_owned(),
            lines: vec![
                device("2026-11-24", &[(1, 10)], (1, 10)),
                device("2026-11-25", &[(11, 14), (16, 18)], (11, 20)),
                ReportLine { source: "(clients)".to_owned(), delivered: 3, ..ReportLine::default() },
            ],
            ids: vec![IdLine {
                day: "2026-11-24".to_owned(),
                uplink: "cloud".to_owned(),
                store: 0xab,
                start: 2,
                delivered: 4,
                counters: Some((1, 5)),
                delivered_counters: vec![(1, 4)],
                ..IdLine::default()
            }],
            ..Report::default()
        }
    }

    fn compared(csv: &str) -> Verdict {
        let verdict = verify(&report(), &Export::read(csv.as_bytes()).unwrap());
        for row in verdict.readable(&report()).lines() {
            assert!(row.chars().count() < 80, "{row}");
        }
        verdict
    }

    #[test]
    fn a_whole_export_misses_nothing_and_says_what_is_early_unknown_and_repeated() {
        let mut csv = String::from("ts,Device,SEQ\n");
        for seq in (1..=18).filter(|seq| *seq != 15) {
            csv += &format!("x,m01,{seq}\n");
        }
        csv += "x,m01,20\nx,m01,3\nx,m01,99\nx,other,1\nx,m01,\n";
        let verdict = compared(&csv);
        assert_eq!((verdict.missing, verdict.repeated, verdict.unknown, verdict.unreadable), (0, 1, 2, 1));
        assert_eq!((verdict.lines[1].found, verdict.lines[1].early, verdict.not_looked_at), (7, 1, 3));
    }

    #[test]
    fn what_is_missing_is_named() {
        let csv: String =
            (1..=18).filter(|seq| ![4, 5, 10, 18].contains(seq)).map(|seq| format!("{seq},m01\n")).collect();
        let verdict = compared(&format!("seq,device\n{csv}"));
        assert_eq!(verdict.missing, 4);
        assert_eq!(verdict.lines[0].missing_numbers, [(4, 5), (10, 10)]);
        assert_eq!(verdict.lines[1].missing_numbers, [(18, 18)]);
        assert!(verdict.readable(&report()).contains("missing: 4 to 5\n"));
    }

    #[test]
    fn ids_are_compared_by_start_and_counter() {
        let id = |start: u32, counter: u64| format!("g7.0000000000ab.{start}.{counter}\n");
        let csv =
            String::from("id\n") + &id(2, 1) + &id(2, 2) + &id(2, 4) + &id(2, 4) + &id(2, 5) + &id(3, 3) + "nonsense\n";
        let verdict = compared(&csv);
        assert_eq!((verdict.missing, verdict.repeated, verdict.unknown, verdict.unreadable), (1, 1, 1, 1));
        assert_eq!(verdict.lines[0].missing_numbers, [(3, 3)]);
        assert_eq!(verdict.lines[0].early, 1);
    }

    #[test]
    fn where_only_the_sum_is_known_the_sum_is_compared() {
        let mut report = report();
        report.lines = vec![ReportLine { is_loose: true, delivered: 5, ..device("2026-11-24", &[(1, 10)], (1, 10)) }];
        let five = Export::read("device,seq\nm01,1\nm01,3\nm01,5\nm01,7\nm01,9\n".as_bytes()).unwrap();
        assert_eq!(verify(&report, &five).missing, 0);
        let four = Export::read("device,seq\nm01,1\nm01,3\nm01,5\nm01,7\n".as_bytes()).unwrap();
        let verdict = verify(&report, &four);
        assert_eq!((verdict.missing, verdict.lines[0].missing_numbers.len()), (1, 0));
    }

    #[test]
    fn a_file_without_the_columns_is_refused_with_its_header() {
        let error = Export::read("time,value\n1,2\n".as_bytes()).unwrap_err();
        assert!(error.contains("time,value") && error.contains("`device` and `seq`"), "{error}");
        assert!(Export::read("".as_bytes()).is_err());
    }
}
