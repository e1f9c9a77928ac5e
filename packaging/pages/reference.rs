//! `config/tidegate.toml` as the manual page `tidegate.toml(5)`: each table a heading, each key with its explanation.
//!
//! The file is held against the code by `tests/config_reference.rs`, and so is the page.

use crate::roff;

const HEAD: &str = "\
.SH NAME
tidegate.toml \\- configuration of the IoT gateway tidegate
.SH DESCRIPTION
TOML. Layers, of which the later wins:
.I /usr/lib/tidegate/*.toml
(vendor),
.I /etc/tidegate/tidegate.toml
and
.I /etc/tidegate/conf.d/*.toml
(owner),
.I /var/lib/tidegate/conf.d/*.toml
(this board).
.B tidegate check
names every mistake with its line;
.B tidegate example
prints configurations to start from.
.PP
Below, each key is shown with its default; where there is none, with an example.
";

const TAIL: &str = "\
.SH SEE ALSO
.BR tidegate (1) ,
.BR tidegate\\-check (1) ,
.BR tidegate\\-example (1)
";

/// The page.
pub fn page(reference: &str) -> String {
    let mut out = format!(".TH tidegate.toml 5 \"\" \"tidegate {}\" Tidegate\n.nh\n{HEAD}", env!("CARGO_PKG_VERSION"));
    let mut explanation: Vec<&str> = Vec::new();
    out.push_str(".SH TABLES AND KEYS\n");
    // The file's own head says how it is to be read; the page has one of its own.
    for line in reference.lines().skip_while(|line| !line.is_empty()) {
        match line.strip_prefix('#') {
            // "# " explains; "#" right before a key or a table switches it off.
            Some(words) if words.starts_with(' ') => explanation.push(words.trim()),
            Some(table) if table.starts_with('[') => {
                out.push_str(&format!(".SS {}\n", roff::text(table)));
                out.push_str(&sentences(&mut explanation));
            }
            Some(key) if !key.is_empty() => {
                out.push_str(&format!(".TP\n{}\n", roff::text(&format!("`{key}`"))));
                out.push_str(&sentences(&mut explanation));
            }
            _ => {
                let words = sentences(&mut explanation);
                if !words.is_empty() {
                    out.push_str(&format!(".PP\n{words}"));
                }
            }
        }
    }
    out.push_str(TAIL);
    out
}

fn sentences(explanation: &mut Vec<&str>) -> String {
    explanation.drain(..).map(|line| roff::text(line) + "\n").collect()
}
