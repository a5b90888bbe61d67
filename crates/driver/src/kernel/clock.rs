//! How fast the processor's time stamp counter runs.

use std::{
    arch::x86_64::_rdtsc,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Long enough that reading the clock (some 50 ns) is an error of a few parts in a million.
const WINDOW: Duration = Duration::from_millis(20);

/// The counter's rate in kilohertz; measured once, for 20 ms in which the thread is busy.
///
/// An emulated machine has the host's counter and no way to measure it: QEMU's smallest machine
/// has no timer that Linux knows how to compare with. So it is told.
pub fn time_stamp_khz() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        // The thread may be taken off the processor between reading clock and counter, which the
        // smallest of some differences between the two readings shows.
        let (start, first) = sample();
        loop {
            let (now, last) = sample();
            let elapsed = now.duration_since(start);
            if elapsed >= WINDOW {
                let ticks = u128::from(last.wrapping_sub(first));
                return u64::try_from(ticks * 1_000_000 / elapsed.as_nanos()).unwrap_or(0);
            }
        }
    })
}

/// Clock and counter at one moment.
fn sample() -> (Instant, u64) {
    let tries = (0..8).map(|_| {
        // SAFETY: every processor that this is built for has the instruction.
        let before = unsafe { _rdtsc() };
        let now = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (
            after.wrapping_sub(before),
            now,
            before + after.wrapping_sub(before) / 2,
        )
    });
    let best = tries.min_by_key(|(width, _, _)| *width);
    best.map_or_else(|| (Instant::now(), 0), |(_, now, counter)| (now, counter))
}
