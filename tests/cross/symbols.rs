//! Does the dynamically linked build start on the oldest system that we name: Raspberry Pi OS 12, glibc 2.36?

use std::path::Path;
use std::process::Command;

use super::build;

const GLIBC_MAX: (u32, u32) = (2, 36);

/// What the program may ask the board for: the C library and the compiler's own support.
const LIBRARIES: &[&str] = &["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-aarch64.so.1", "ld-linux-armhf.so.3"];

fn readelf(program: &Path, flags: &[&str]) -> String {
    let output = Command::new("readelf").arg("--wide").args(flags).arg(program).output().unwrap();
    assert!(output.status.success(), "readelf failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The versions `GLIBC_<major>.<minor>` that a text names.
fn glibc_versions(text: &str) -> Vec<(u32, u32)> {
    let names = text.split(|c: char| c.is_whitespace() || "()@,".contains(c));
    let numbers = names.filter_map(|name| name.strip_prefix("GLIBC_")?.split_once('.'));
    // A third number, as in 2.2.5, stands for versions that every system has.
    numbers
        .map(|(major, minor)| {
            let minor = minor.split('.').next().unwrap();
            (major.parse().unwrap(), minor.parse().unwrap())
        })
        .collect()
}

fn expect_it_starts_on_raspberry_pi_os_12(name: &str, machine: &str) {
    let Some(program) = build(name) else { return };
    let header = readelf(&program, &["--file-header"]);
    assert!(header.contains(machine), "{header}");
    assert!(header.contains("DYN (Position-Independent Executable file)"), "it is not position-independent: {header}");

    let newest = glibc_versions(&readelf(&program, &["--version-info"])).into_iter().max();
    let newest = newest.expect("a dynamically linked program names versions of glibc");
    println!("{name}: asks for glibc {}.{}", newest.0, newest.1);
    assert!(newest <= GLIBC_MAX, "{name} asks for glibc {newest:?}; Raspberry Pi OS 12 has {GLIBC_MAX:?}");

    let dynamic = readelf(&program, &["--dynamic"]);
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        let library = line.split(['[', ']']).nth(1).unwrap();
        assert!(LIBRARIES.contains(&library), "{name} needs {library}");
    }
}

#[test]
fn the_arm64_build_asks_for_no_glibc_above_2_36_and_for_no_other_library() {
    expect_it_starts_on_raspberry_pi_os_12("arm64", "AArch64");
}

#[test]
fn the_armhf_build_asks_for_no_glibc_above_2_36_and_for_no_other_library() {
    expect_it_starts_on_raspberry_pi_os_12("armhf", "ARM");
}

#[test]
fn versions_are_read_from_what_readelf_prints() {
    let text = "  0x0010:   Name: GLIBC_2.34  Flags: none  Version: 7\n 5: 0 FUNC GLOBAL f@GLIBC_2.2.5 (3)\n GCC_3.0";
    assert_eq!(glibc_versions(text), [(2, 34), (2, 2)]);
}
