//! Which allocators a program has, by what evidence, which of them serves `malloc`, and what cannot be seen of them.
//!
//! `malloc` is that of the first file that exports it, in the order in which the dynamic linker looks names up. Whether anybody
//! has called glibc's shows in its main arena, so a heap mapping alone never counts as glibc's: tcmalloc moves the break too.

mod elf;
mod extent;
mod facts;
mod go;
mod musl;
mod objects;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod versions;

use std::collections::HashMap;

use self::extent::Extent;
use self::facts::CLibrary;
use self::facts::Facts;
use self::facts::Find;
use self::objects::Object;
use self::objects::Objects;
use self::objects::file_name;
use super::Image;
use super::layout::Located;
use crate::event::AllocatorRole;
use crate::event::RecognisedAllocator;
use crate::mapping::MappingKind;

/// Files of which something is remembered.
const MOST_FILES: usize = 1024;
/// Writable memory of one file in which musl's records are looked for.
const MOST_DATA: u64 = 16 << 20;
/// The mapping that the bundled malloc counts on: `stats_page::NAME`.
const BUNDLED: &str = "/memfd:breaktrace-stats";

/// How closely a program is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What names and a few words tell: for the end of each program under trace.
    #[default]
    Quick,
    /// Constants are searched, and memory is counted: for one look at one program.
    Thorough,
}

/// Recognises allocators, and remembers what the files that it saw are.
#[derive(Default)]
pub struct Recogniser {
    /// By path; with the inode.
    known: HashMap<String, (u64, Facts)>,
}

impl std::fmt::Debug for Recogniser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recogniser")
            .field("known", &self.known.len())
            .finish()
    }
}

/// The allocators of a program, looked at thoroughly: those in charge of blocks first, pools on top of them last. `located` are
/// the mallocs of glibc's that were found in it.
#[must_use]
pub fn recognise(image: &dyn Image, located: &[Located]) -> Vec<RecognisedAllocator> {
    Recogniser::default().recognise(image, located, Depth::Thorough)
}

impl Recogniser {
    /// The same as [`recognise`], at this depth.
    pub fn recognise(
        &mut self,
        image: &dyn Image,
        located: &[Located],
        depth: Depth,
    ) -> Vec<RecognisedAllocator> {
        let objects = Objects::of(image);
        let facts: Vec<Facts> = objects
            .list
            .iter()
            .enumerate()
            .map(|(place, object)| self.facts(image, object, depth, place == 0))
            .collect();
        let mut account = Account {
            image,
            depth,
            objects: &objects,
            located,
            in_charge: None,
            found: Vec::new(),
        };
        account.tools();
        account.mallocs(&facts);
        account.unlisted();
        account.runtimes(&facts);
        account.bundled();
        account.finish()
    }

    fn facts(
        &mut self,
        image: &dyn Image,
        object: &Object<'_>,
        depth: Depth,
        is_program: bool,
    ) -> Facts {
        if let Some((inode, facts)) = self.known.get(object.name)
            && *inode == object.inode
            && facts.depth >= depth
        {
            return facts.clone();
        }
        let facts = Facts::of(image, object, depth, is_program);
        // A file whose names could not be read may be in the midst of being loaded; a static program has none.
        let is_complete = object.symbols(image).is_some() || is_program;
        if is_complete && object.inode != 0 && self.known.len() < MOST_FILES {
            self.known
                .insert(object.name.to_owned(), (object.inode, facts.clone()));
        }
        facts
    }
}

/// What was recognised so far.
struct Account<'a> {
    image: &'a dyn Image,
    depth: Depth,
    objects: &'a Objects<'a>,
    located: &'a [Located],
    /// What serves malloc, as far as is known.
    in_charge: Option<String>,
    found: Vec<RecognisedAllocator>,
}

impl Account<'_> {
    /// Valgrind has the program's calls come to its own library, without exporting malloc.
    fn tools(&mut self) {
        let tool = self
            .objects
            .list
            .iter()
            .find(|object| table::VALGRIND.is_called(object.file_name()));
        if let Some(object) = tool {
            self.in_charge = Some(table::VALGRIND.name.to_owned());
            self.found.push(RecognisedAllocator {
                name: table::VALGRIND.name.to_owned(),
                version: None,
                file: Some(object.name.to_owned()),
                role: AllocatorRole::InCharge,
                evidence: format!("{} is loaded", object.file_name()),
                mapped_bytes: None,
                resident_bytes: None,
                lazily_free_bytes: None,
                not_visible: Some(table::VALGRIND.not_visible.to_owned()),
            });
        }
    }

    /// The mallocs that files export, or have within them.
    fn mallocs(&mut self, facts: &[Facts]) {
        let objects = self.objects;
        for (object, facts) in objects.list.iter().zip(facts) {
            let glibc = self
                .located
                .iter()
                .position(|located| located.file.as_deref() == Some(object.name));
            if glibc.is_some() && facts.malloc.is_none() || facts.library == Some(CLibrary::Glibc) {
                self.glibc(object, glibc.and_then(|index| self.located.get(index)));
            } else if let Some(find) = &facts.malloc {
                self.malloc(object, facts, find);
            } else if facts.exports_malloc && !is_linker(object) {
                self.unknown_malloc(object);
            }
        }
        if let Some(program) = objects.list.first()
            && objects.interpreter.is_none()
            && self.in_charge.is_none()
            && self.depth == Depth::Thorough
        {
            self.static_musl(program);
        }
    }

    fn glibc(&mut self, object: &Object<'_>, located: Option<&Located>) {
        let is_first = self.in_charge.is_none();
        let role = match (located.map(|located| located.is_used), is_first) {
            (Some(true), true) => AllocatorRole::InCharge,
            (Some(true), false) => AllocatorRole::Beside,
            (Some(false), _) => AllocatorRole::Unused,
            (None, _) => AllocatorRole::Unknown,
        };
        let name = object.file_name();
        let order = self.order(object);
        let use_of_it = match located {
            Some(located) if located.is_used => "its main arena has a top, so it was called",
            Some(_) => "its main arena has no top, so nobody has called it",
            None => "its arenas were not found",
        };
        if is_first && role != AllocatorRole::Unused {
            self.in_charge = Some("glibc malloc".to_owned());
        }
        self.found.push(RecognisedAllocator {
            name: "glibc malloc".to_owned(),
            version: located.and_then(|located| located.version.clone()),
            file: Some(object.name.to_owned()),
            role,
            evidence: format!("{name} has it{order}; {use_of_it}"),
            mapped_bytes: None,
            resident_bytes: None,
            lazily_free_bytes: None,
            not_visible: None,
        });
    }

    fn malloc(&mut self, object: &Object<'_>, facts: &Facts, find: &Find) {
        let serves = facts.exports_malloc || self.objects.interpreter.is_none();
        let order = if facts.exports_malloc {
            format!(", and malloc{}", self.order(object))
        } else {
            String::new()
        };
        let role = if find.known.passes_on && serves {
            AllocatorRole::Beside
        } else if serves && self.in_charge.is_none() && !find.is_beside {
            self.in_charge = Some(find.known.name.to_owned());
            AllocatorRole::InCharge
        } else {
            AllocatorRole::Unknown
        };
        let evidence = format!("{} {}{order}", object.file_name(), find.evidence);
        let extent = if facts.library == Some(CLibrary::Musl) {
            self.musl_groups(object)
        } else {
            Extent::default()
        };
        self.push(object, find, role, evidence, extent);
    }

    /// How the order says that a file is first, or not.
    fn order(&self, object: &Object<'_>) -> String {
        if !self.objects.is_linked || self.in_charge.is_some() {
            return String::new();
        }
        let next = self
            .objects
            .list
            .iter()
            .skip_while(|other| !std::ptr::eq(*other, object))
            .skip(1)
            .find(|other| {
                !is_linker(other)
                    && other
                        .symbols(self.image)
                        .is_some_and(|symbols| symbols.find(self.image, "malloc").is_some())
            });
        match next {
            Some(next) => format!(", before {} where names are looked up", next.file_name()),
            None => String::new(),
        }
    }

    /// Something exports malloc that is not known.
    fn unknown_malloc(&mut self, object: &Object<'_>) {
        let name = object.file_name();
        // One that passes calls on shows in the use of the next.
        let passes_on = self.located.iter().any(|located| located.is_used);
        let (role, why) = if self.in_charge.is_some() {
            (AllocatorRole::Unknown, "others come before it")
        } else if passes_on {
            (
                AllocatorRole::Unknown,
                "glibc's is used as well, so it may pass calls on",
            )
        } else {
            self.in_charge = Some(name.to_owned());
            (AllocatorRole::InCharge, "no other comes before it")
        };
        self.found.push(RecognisedAllocator {
            name: format!("malloc of {name}"),
            version: None,
            file: Some(object.name.to_owned()),
            role,
            evidence: format!("{name} exports malloc; {why}"),
            mapped_bytes: None,
            resident_bytes: None,
            lazily_free_bytes: None,
            not_visible: Some("everything: this malloc is not known".to_owned()),
        });
    }

    fn static_musl(&mut self, program: &Object<'_>) {
        let Some(context) = musl::context(self.image, program, MOST_DATA) else {
            return;
        };
        let find = Find {
            known: &table::MUSL,
            version: None,
            evidence: String::new(),
            is_beside: false,
        };
        let extent = context
            .groups(self.image)
            .map(|groups| extent::of_ranges(self.image, &groups))
            .unwrap_or_default();
        self.in_charge = Some(table::MUSL.name.to_owned());
        let evidence = format!(
            "{} is static and has musl's __malloc_context: the secret that it begins with stands in its records too",
            program.file_name()
        );
        self.push(program, &find, AllocatorRole::InCharge, evidence, extent);
    }

    fn musl_groups(&self, library: &Object<'_>) -> Extent {
        if self.depth == Depth::Quick {
            return Extent::default();
        }
        musl::context(self.image, library, MOST_DATA)
            .and_then(|context| context.groups(self.image))
            .map(|groups| extent::of_ranges(self.image, &groups))
            .unwrap_or_default()
    }

    /// Mallocs of glibc's that no listed file has: of another namespace (dlmopen(3)), or in a file that was replaced.
    fn unlisted(&mut self) {
        for located in self.located {
            let is_listed = self
                .found
                .iter()
                .any(|found| found.name == "glibc malloc" && found.file == located.file);
            let copies = self
                .located
                .iter()
                .take_while(|other| other.main_arena != located.main_arena)
                .any(|other| other.file == located.file);
            if is_listed && !copies {
                continue;
            }
            let role = match (located.is_used, &self.in_charge) {
                (false, _) => AllocatorRole::Unused,
                (true, Some(_)) => AllocatorRole::Beside,
                (true, None) => AllocatorRole::InCharge,
            };
            if role == AllocatorRole::InCharge {
                self.in_charge = Some("glibc malloc".to_owned());
            }
            let file = located.file.as_deref().map_or("memory", file_name);
            self.found.push(RecognisedAllocator {
                name: "glibc malloc".to_owned(),
                version: located.version.clone(),
                file: located.file.clone(),
                role,
                evidence: format!("{file} has a main arena of it"),
                mapped_bytes: None,
                resident_bytes: None,
                lazily_free_bytes: None,
                not_visible: None,
            });
        }
    }

    fn runtimes(&mut self, facts: &[Facts]) {
        let objects = self.objects;
        for (object, facts) in objects.list.iter().zip(facts) {
            for find in &facts.runtimes {
                let is_listed = self.found.iter().any(|found| found.name == find.known.name);
                if is_listed {
                    continue;
                }
                let is_go = find.known.name == table::GO.name;
                let role = match (find.is_beside, &self.in_charge) {
                    // Nothing else deals out blocks.
                    (true, None) if is_go => AllocatorRole::InCharge,
                    (true, _) => AllocatorRole::Beside,
                    (false, _) => AllocatorRole::Above,
                };
                let extent = if is_go && self.depth == Depth::Thorough {
                    let mut ranges = extent::from(self.image, go::ARENAS);
                    if ranges.is_empty() {
                        ranges = extent::named(self.image, find.known.mappings);
                    }
                    extent::of_ranges(self.image, &ranges)
                } else {
                    Extent::default()
                };
                let evidence = format!("{} {}", object.file_name(), find.evidence);
                self.push(object, find, role, evidence, extent);
            }
        }
    }

    fn push(
        &mut self,
        object: &Object<'_>,
        find: &Find,
        role: AllocatorRole,
        evidence: String,
        extent: Extent,
    ) {
        let mut extent = extent;
        if extent.mapped.is_none() && self.depth == Depth::Thorough {
            let ranges = extent::named(self.image, find.known.mappings);
            extent = extent::of_ranges(self.image, &ranges);
        }
        let mut not_visible = find.known.not_visible.to_owned();
        let program = self.objects.list.first().map(Object::file_name);
        if role == AllocatorRole::InCharge
            && program.is_some_and(|program| {
                program.starts_with("redis-") || program.starts_with("valkey-")
            })
        {
            not_visible.push_str(table::REDIS);
        }
        self.found.push(RecognisedAllocator {
            name: find.known.name.to_owned(),
            version: find.version.clone(),
            file: Some(object.name.to_owned()),
            role,
            evidence,
            mapped_bytes: extent.mapped,
            resident_bytes: extent.resident,
            lazily_free_bytes: extent.lazily_free,
            not_visible: Some(not_visible),
        });
    }

    /// The page of the bundled malloc is there before anybody calls it, wherever its library lies.
    fn bundled(&mut self) {
        let page = self.image.mappings().iter().find(|mapping| {
            mapping
                .name
                .as_deref()
                .is_some_and(|name| name.strip_suffix(" (deleted)").unwrap_or(name) == BUNDLED)
                && mapping.kind() != MappingKind::Kernel
        });
        if let Some(found) = self
            .found
            .iter_mut()
            .find(|found| found.name == "breaktrace's bundled malloc")
            && page.is_some()
        {
            found
                .evidence
                .push_str("; the page that it counts on is mapped");
        }
    }

    fn finish(mut self) -> Vec<RecognisedAllocator> {
        self.found.sort_by_key(|found| match found.role {
            AllocatorRole::InCharge => 0,
            AllocatorRole::Beside => 1,
            AllocatorRole::Unknown => 2,
            AllocatorRole::Unused => 3,
            AllocatorRole::Above => 4,
        });
        self.found
    }
}

/// Whether this is glibc's dynamic linker, which before 2.33 exports a malloc for its own beginnings.
fn is_linker(object: &Object<'_>) -> bool {
    let name = object.file_name();
    name.starts_with("ld-linux") || name.starts_with("ld-2.") || name.starts_with("ld64.so")
}
