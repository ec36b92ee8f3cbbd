//! What a process takes of the machine, as Linux tells it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// What Linux counts CPU time in for programs, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;
/// Written to `/proc/PID/clear_refs`: the peak of the resident memory is counted anew.
const COUNT_ANEW: &str = "5";

/// What `/proc/PID/stat` tells.
struct Stat {
    parent: u32,
    /// CPU time, of the user and the system.
    ticks: u64,
}

fn stat(pid: u32) -> Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The name before may have spaces and parentheses in it.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let (Some(parent), Some(user), Some(system)) = (number(1), number(11), number(12)) else {
        bail!("/proc/{pid}/stat cannot be read");
    };
    Ok(Stat {
        parent: u32::try_from(parent)?,
        ticks: user + system,
    })
}

/// CPU time of a process alone, in seconds.
pub fn own_cpu_seconds(pid: u32) -> Result<f64> {
    Ok(stat(pid)?.ticks as f64 / TICKS_PER_SECOND)
}

/// CPU time of a process and all below it, in seconds.
pub fn cpu_seconds(root: u32) -> Result<f64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that has ended meanwhile counts no more.
        if let Ok(stat) = stat(pid) {
            found.insert(pid, stat);
        }
    }
    ensure!(found.contains_key(&root), "process {root} is gone");
    let is_below = |pid: u32| {
        let mut at = Some(pid);
        while let Some(pid) = at {
            if pid == root {
                return true;
            }
            at = found.get(&pid).map(|stat| stat.parent);
        }
        false
    };
    let ticks: u64 = found
        .iter()
        .filter(|(pid, _)| is_below(**pid))
        .map(|(_, stat)| stat.ticks)
        .sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    memory_line(pid, "VmRSS:")
}

fn memory_line(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("/proc/{pid}/status does not tell {name}"))? * 1024)
}

/// The most resident memory of the server under each load.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Peaks(Vec<Peak>);

/// The most resident memory under one load.
#[derive(Debug, Serialize)]
pub struct Peak {
    /// What was done.
    pub load: &'static str,
    /// In bytes. Where the system does not count anew, it is the most since the server's start.
    pub bytes: u64,
}

impl Peaks {
    /// Notes the peak of a load that has ended, and counts the next one anew.
    pub fn note(&mut self, pid: u32, load: &'static str) -> Result<u64> {
        let bytes = memory_line(pid, "VmHWM:")?;
        self.0.push(Peak { load, bytes });
        // Not every system can; the peak of a later load is then never too low.
        fs::write(format!("/proc/{pid}/clear_refs"), COUNT_ANEW).ok();
        Ok(bytes)
    }

    /// The most under all loads.
    pub fn highest(&self) -> u64 {
        self.0.iter().map(|peak| peak.bytes).max().unwrap_or_default()
    }

    /// All, in the order of the loads.
    pub fn all(&self) -> &[Peak] {
        &self.0
    }
}
