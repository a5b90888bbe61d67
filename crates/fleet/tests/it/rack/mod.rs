//! Machines behind controllers that misbehave, over TLS as in a data centre. Nobody waits for time to
//! pass: controllers and fleet are told what time it is.

mod bench;
mod faults;
mod fifty;
mod kills;
