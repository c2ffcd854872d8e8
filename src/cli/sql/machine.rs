//! How much memory there is.

use std::path::Path;

/// What the machine has, or this process's group of processes where that may take less; nothing where nobody tells.
pub fn memory_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let all = read("/proc/meminfo").as_deref().and_then(total);
    let group = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    all.into_iter().chain(group).min()
}

/// `MemTotal:  8048532 kB`.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_how_much_it_has() {
        assert_eq!(total("MemTotal:        2000 kB\nMemFree:  3 kB\n"), Some(2_048_000));
        assert_eq!(total("MemFree:  3 kB\n"), None);
    }
}
