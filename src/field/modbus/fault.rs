//! What can be wrong with an answer: each in words for a person, and by a short name for the counters. Pure.

/// Why what arrived is not the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was asked.
    NoRequest,
    /// Modbus TCP: the answer to another request, mostly a late one.
    Transaction,
    /// Modbus TCP: another protocol.
    Protocol,
    /// Modbus TCP: no answer can be that long.
    LengthImpossible,
    /// Modbus TCP: this answer cannot be that long.
    Length,
    /// Another unit speaks.
    Unit,
    /// Another unit speaks, or it is noise.
    UnitOrNoise,
    /// The answer to another function.
    Function,
    /// Not as much data as was asked for.
    ByteCount,
    /// An exception that says nothing.
    NoExceptionCode,
    /// RTU: damaged on its way.
    Checksum,
    /// More than one answer.
    Surplus,
    /// Somebody speaks between requests.
    Unasked,
    /// Somebody speaks without a pause.
    NeverSilent,
    /// Whole, but to another request.
    OtherRequest,
}

impl Fault {
    /// For a person.
    pub fn reason(self) -> &'static str {
        match self {
            Fault::NoRequest => "no request was sent",
            Fault::Transaction => "the answer has the transaction id of another request",
            Fault::Protocol => "the answer is not Modbus: its protocol id is not 0",
            Fault::LengthImpossible => "the length in the answer's header is impossible",
            Fault::Length => "the length in the answer's header does not fit the request",
            Fault::Unit => "the answer is from another unit",
            Fault::UnitOrNoise => "the answer is from another unit, or noise",
            Fault::Function => "the answer has another function than the request",
            Fault::ByteCount => "the byte count of the answer does not fit the request",
            Fault::NoExceptionCode => "the answer has no exception code",
            Fault::Checksum => "the checksum of the answer is wrong",
            Fault::Surplus => "more bytes than one answer arrived",
            Fault::Unasked => "something arrived that was not asked for",
            Fault::NeverSilent => "the bus is never silent: something talks without being asked",
            Fault::OtherRequest => "the answer does not fit the request",
        }
    }

    /// For `faults` in `status --json`.
    pub fn kind(self) -> &'static str {
        match self {
            Fault::NoRequest | Fault::OtherRequest => "mismatch",
            Fault::Transaction => "transaction",
            Fault::Protocol => "protocol",
            Fault::LengthImpossible | Fault::Length => "length",
            Fault::Unit | Fault::UnitOrNoise => "unit",
            Fault::Function => "function",
            Fault::ByteCount => "byte-count",
            Fault::NoExceptionCode => "exception-code",
            Fault::Checksum => "checksum",
            Fault::Surplus => "surplus",
            Fault::Unasked | Fault::NeverSilent => "unasked",
        }
    }
}

/// The short name of an exception (Modbus Application Protocol 1.1b3, 7).
pub fn exception_kind(code: u8) -> &'static str {
    match code {
        1 => "exception-1",
        2 => "exception-2",
        3 => "exception-3",
        4 => "exception-4",
        5 => "exception-5",
        6 => "exception-6",
        8 => "exception-8",
        10 => "exception-10",
        11 => "exception-11",
        _ => "exception-other",
    }
}

/// An exception in the words of the specification.
pub fn exception_name(code: u8) -> &'static str {
    match code {
        1 => "illegal function",
        2 => "illegal data address",
        3 => "illegal data value",
        4 => "server device failure",
        5 => "acknowledge",
        6 => "server device busy",
        8 => "memory parity error",
        10 => "gateway path unavailable",
        11 => "gateway target device failed to respond",
        _ => "unknown reason",
    }
}
