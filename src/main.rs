//! The program `tidegate`.
