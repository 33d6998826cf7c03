//! How often each memory call was made.

use crate::report::CallCount;

/// The memory calls, in the order in which reports list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Brk,
    Mmap,
    Munmap,
    Mremap,
    Mprotect,
    Madvise,
    Shmat,
    Shmdt,
    RemapFilePages,
    MapShadowStack,
}

impl Call {
    const ALL: [Self; 10] = [
        Self::Brk,
        Self::Mmap,
        Self::Munmap,
        Self::Mremap,
        Self::Mprotect,
        Self::Madvise,
        Self::Shmat,
        Self::Shmdt,
        Self::RemapFilePages,
        Self::MapShadowStack,
    ];

    /// Its name, as in section 2 of the manual.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Brk => "brk",
            Self::Mmap => "mmap",
            Self::Munmap => "munmap",
            Self::Mremap => "mremap",
            Self::Mprotect => "mprotect",
            Self::Madvise => "madvise",
            Self::Shmat => "shmat",
            Self::Shmdt => "shmdt",
            Self::RemapFilePages => "remap_file_pages",
            Self::MapShadowStack => "map_shadow_stack",
        }
    }
}

/// Calls by name.
#[derive(Clone, Debug, Default)]
pub(super) struct CallCounts {
    made: [u64; Call::ALL.len()],
    failed: [u64; Call::ALL.len()],
}

impl CallCounts {
    pub(super) fn count(&mut self, call: Call, succeeded: bool) {
        self.made[call as usize] += 1;
        if !succeeded {
            self.failed[call as usize] += 1;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for call in Call::ALL {
            self.made[call as usize] += other.made[call as usize];
            self.failed[call as usize] += other.failed[call as usize];
        }
    }

    /// Those that were made at all.
    pub(super) fn report(&self) -> Vec<CallCount> {
        Call::ALL
            .into_iter()
            .filter(|&call| self.made[call as usize] > 0)
            .map(|call| CallCount {
                name: call.name().to_owned(),
                calls: self.made[call as usize],
                failed: self.failed[call as usize],
            })
            .collect()
    }
}
