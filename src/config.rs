//! Files → settings, with every problem reported at once.

pub mod settings;
