//! A hash map of the kernel, as far as it surprises: a place that is freed is used again at once,
//! by whoever inserts next, and whoever has found a place before can still read and write there.

use lifemon_ebpf::records::{E2BIG, EEXIST, ENOENT};

/// A place, as it was found: what stood there then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    index: usize,
    serial: u64,
}

/// As pointers compare.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

struct Element<K, V> {
    key: Option<K>,
    value: V,
    /// The number of its insertion.
    serial: u64,
}

pub(super) struct Elements<K, V> {
    places: Vec<Element<K, V>>,
    /// Free places, the next one last.
    free: Vec<usize>,
    capacity: usize,
    serial: u64,
}

impl<K: PartialEq + Copy, V: Copy> Elements<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            capacity,
            serial: 0,
        }
    }

    pub(super) fn find(&self, key: &K) -> Option<Place> {
        let index = self
            .places
            .iter()
            .position(|it| it.key.as_ref() == Some(key))?;
        let serial = self.places[index].serial;
        Some(Place { index, serial })
    }

    /// Returns what stands at this place now, whoever's it is.
    pub(super) fn at(&mut self, place: Place) -> &mut V {
        &mut self.places[place.index].value
    }

    /// Returns what stood there when the place was found.
    pub(super) fn own(&mut self, place: Place) -> &mut V {
        let element = &mut self.places[place.index];
        let is_own = element.serial == place.serial && element.key.is_some();
        assert!(is_own, "wrote into a place that holds another one by now");
        &mut element.value
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.find(key).map(|place| self.places[place.index].value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Result<(), i32> {
        if self.find(&key).is_some() {
            return Err(EEXIST);
        }
        self.serial += 1;
        let element = Element {
            key: Some(key),
            value,
            serial: self.serial,
        };
        match self.free.pop() {
            Some(index) => self.places[index] = element,
            None if self.places.len() < self.capacity => self.places.push(element),
            None => return Err(E2BIG),
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, key: &K) -> Result<(), i32> {
        let place = self.find(key).ok_or(ENOENT)?;
        self.places[place.index].key = None;
        self.free.push(place.index);
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let elements = self.places.iter();
        elements.filter_map(|it| it.key.as_ref().map(|key| (key, &it.value)))
    }
}
