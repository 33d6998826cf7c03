//! The numbers of Python functions.

use std::collections::HashMap;

use crate::event::EventKind;
use crate::event::FunctionId;
use crate::event::InterpretedFunction;

/// Most functions that are remembered; then they are forgotten, and told of once more when they come again.
const MOST_FUNCTIONS: usize = 1 << 16;

type Key = (String, String, Option<u32>);

/// A function, and its number if it has one.
#[derive(Debug)]
pub(super) struct Named {
    key: Key,
    number: Option<(u32, FunctionId)>,
}

impl Named {
    pub(super) fn new(name: String, source: String, first_line: Option<u32>) -> Self {
        Self {
            key: (name, source, first_line),
            number: None,
        }
    }
}

/// All functions of a recording.
#[derive(Debug, Default)]
pub(super) struct Functions {
    known: HashMap<Key, FunctionId>,
    /// How often all have been forgotten.
    generation: u32,
    last: u32,
    /// Those of which nobody has been told.
    pub(super) news: Vec<EventKind>,
}

impl Functions {
    pub(super) fn number(&mut self, named: &mut Named) -> FunctionId {
        if let Some((generation, id)) = named.number
            && generation == self.generation
        {
            return id;
        }
        let id = match self.known.get(&named.key) {
            Some(id) => *id,
            None => self.add(&named.key),
        };
        named.number = Some((self.generation, id));
        id
    }

    fn add(&mut self, key: &Key) -> FunctionId {
        if self.known.len() >= MOST_FUNCTIONS {
            self.known.clear();
            self.generation = self.generation.wrapping_add(1);
        }
        self.last = self.last.wrapping_add(1);
        let id = FunctionId(self.last);
        self.known.insert(key.clone(), id);
        let (name, source, first_line) = key.clone();
        self.news.push(EventKind::FunctionSeen(InterpretedFunction {
            id,
            language: "python".to_owned(),
            name,
            source,
            first_line,
        }));
        id
    }
}
