//! Checksums of serial frames: calculated, found, compared. Pure.
//!
//! Promises: a frame whose checksum does not stand where it is said to, or is not the right one, is not whole; a
//! checksum never covers itself.

use std::ops::Range;

use crc::{Crc, Table};

use crate::config::{ByteOrder, Checksum, ChecksumForm, ChecksumKind};

static SMBUS: Crc<u8, Table<1>> = Crc::<u8, Table<1>>::new(&crc::CRC_8_SMBUS);
static MAXIM: Crc<u8, Table<1>> = Crc::<u8, Table<1>>::new(&crc::CRC_8_MAXIM_DOW);
static MODBUS: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&crc::CRC_16_MODBUS);
static CCITT_FALSE: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&crc::CRC_16_IBM_3740);
static XMODEM: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&crc::CRC_16_XMODEM);
static KERMIT: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&crc::CRC_16_KERMIT);
static ARC: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&crc::CRC_16_ARC);
static X25: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&crc::CRC_16_IBM_SDLC);
static HDLC_32: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&crc::CRC_32_ISO_HDLC);

/// The checksum of `bytes`; only its lowest `kind.bytes()` bytes are used.
pub fn of(kind: ChecksumKind, bytes: &[u8]) -> u32 {
    let sum = || bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    match kind {
        ChecksumKind::Xor => u32::from(bytes.iter().fold(0, |all, byte| all ^ byte)),
        ChecksumKind::Sum8 => sum() & 0xff,
        ChecksumKind::Sum16 => sum() & 0xffff,
        ChecksumKind::Lrc => sum().wrapping_neg() & 0xff,
        ChecksumKind::Crc8 => u32::from(SMBUS.checksum(bytes)),
        ChecksumKind::Crc8Maxim => u32::from(MAXIM.checksum(bytes)),
        ChecksumKind::Crc16Modbus => u32::from(MODBUS.checksum(bytes)),
        ChecksumKind::Crc16CcittFalse => u32::from(CCITT_FALSE.checksum(bytes)),
        ChecksumKind::Crc16Xmodem => u32::from(XMODEM.checksum(bytes)),
        ChecksumKind::Crc16Kermit => u32::from(KERMIT.checksum(bytes)),
        ChecksumKind::Crc16Arc => u32::from(ARC.checksum(bytes)),
        ChecksumKind::Crc16X25 => u32::from(X25.checksum(bytes)),
        ChecksumKind::Crc32 => HDLC_32.checksum(bytes),
    }
}

/// The checksum of `bytes` as a device would send it.
pub fn written(checksum: &Checksum, bytes: &[u8]) -> Vec<u8> {
    let value = of(checksum.kind, bytes).to_be_bytes();
    let skipped = value.len() - checksum.kind.bytes();
    let mut bytes: Vec<u8> = value.into_iter().skip(skipped).collect();
    if checksum.order == ByteOrder::Little {
        bytes.reverse();
    }
    match checksum.form {
        ChecksumForm::Binary => bytes,
        ChecksumForm::Hex => bytes.iter().flat_map(|byte| format!("{byte:02X}").into_bytes()).collect(),
    }
}

/// Where the checksum of a whole frame stands, if it is the right one.
pub fn confirmed(checksum: &Checksum, frame: &[u8]) -> Option<Range<usize>> {
    let width = checksum.width();
    let at = match checksum.at {
        Some(at) => at,
        None => frame.len().checked_sub(width)?,
    };
    let end = at.checked_add(width)?;
    let found = frame.get(at..end)?;
    // One that stands before what it covers, covers the rest of the frame.
    let covered = if checksum.from >= end {
        frame.get(checksum.from..)?
    } else {
        frame.get(checksum.from..at.checked_sub(checksum.skip)?)?
    };
    let expected = written(checksum, covered);
    let is_right = match checksum.form {
        ChecksumForm::Binary => found == expected,
        ChecksumForm::Hex => found.eq_ignore_ascii_case(&expected),
    };
    is_right.then_some(at..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_gives_what_its_catalogue_says_of_123456789() {
        let check = b"123456789";
        for (kind, expected) in [
            (ChecksumKind::Xor, 0x31),
            (ChecksumKind::Sum8, 0xdd),
            (ChecksumKind::Sum16, 0x01dd),
            (ChecksumKind::Lrc, 0x23),
            (ChecksumKind::Crc8, 0xf4),
            (ChecksumKind::Crc8Maxim, 0xa1),
            (ChecksumKind::Crc16Modbus, 0x4b37),
            (ChecksumKind::Crc16CcittFalse, 0x29b1),
            (ChecksumKind::Crc16Xmodem, 0x31c3),
            (ChecksumKind::Crc16Kermit, 0x2189),
            (ChecksumKind::Crc16Arc, 0xbb3d),
            (ChecksumKind::Crc16X25, 0x906e),
            (ChecksumKind::Crc32, 0xcbf4_3926),
        ] {
            assert_eq!(of(kind, check), expected, "{kind:?}");
            assert!(u64::from(of(kind, check)) < 1 << (8 * kind.bytes()), "{kind:?} has more bytes than it says");
        }
    }

    #[test]
    fn frames_of_real_devices_are_confirmed_where_their_checksum_stands() {
        // A Modbus answer; an NMEA sentence without its line end; a block check behind ETX; one in the header.
        let modbus = Checksum::at_end(ChecksumKind::Crc16Modbus, ChecksumForm::Binary);
        let frame = [0x11, 0x03, 0x06, 0xAE, 0x41, 0x56, 0x52, 0x43, 0x40, 0x49, 0xAD];
        assert_eq!(confirmed(&modbus, &frame), Some(9..11));
        assert_eq!(confirmed(&modbus, &frame[..10]), None);
        let nmea = Checksum { from: 1, skip: 1, ..Checksum::at_end(ChecksumKind::Xor, ChecksumForm::Hex) };
        let sentence = b"$GPGLL,5057.970,N,00146.110,E,142451,A*27";
        assert_eq!(confirmed(&nmea, sentence), Some(39..41));
        assert_eq!(confirmed(&nmea, b"$GPGLL,5057.971,N,00146.110,E,142451,A*27"), None);
        let block = Checksum { from: 1, ..Checksum::at_end(ChecksumKind::Xor, ChecksumForm::Binary) };
        assert_eq!(confirmed(&block, b"\x0212.5\x03\x1b"), Some(6..7));
        let header = Checksum { at: Some(1), from: 2, ..Checksum::at_end(ChecksumKind::Sum8, ChecksumForm::Binary) };
        assert_eq!(confirmed(&header, &[0xAA, 3, 1, 2]), Some(1..2));
    }

    #[test]
    fn a_frame_that_is_too_short_for_its_checksum_is_not_whole() {
        for at in [None, Some(0), Some(usize::MAX)] {
            for (from, skip) in [(0, 0), (5, 0), (0, 9), (usize::MAX, usize::MAX)] {
                let checksum = Checksum { at, from, skip, ..Checksum::at_end(ChecksumKind::Crc32, ChecksumForm::Hex) };
                for length in 0..8 {
                    assert_eq!(confirmed(&checksum, &vec![b'0'; length]), None, "{checksum:?} {length}");
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_confirmed() {
        for (name, kind) in ChecksumKind::ALL {
            for form in [ChecksumForm::Binary, ChecksumForm::Hex] {
                for order in [ByteOrder::Big, ByteOrder::Little] {
                    let checksum = Checksum { order, ..Checksum::at_end(kind, form) };
                    let mut frame = b"S S   12.50 kg".to_vec();
                    let appended = written(&checksum, &frame);
                    assert_eq!(appended.len(), checksum.width());
                    frame.extend(appended);
                    assert!(confirmed(&checksum, &frame).is_some(), "{name}");
                    frame[3] ^= 1;
                    assert!(confirmed(&checksum, &frame).is_none(), "{name}");
                }
            }
        }
    }
}
