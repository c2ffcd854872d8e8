//! A run's parameters: as they are stored with it, and as SQL sees them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::settings::{ParamValue, Pipeline};
use crate::engine::{Param, Params};
use crate::ledger::Run;

/// Declared parameters with the given ones in their place, as they are stored with the run.
pub fn params_json(pipeline: &Pipeline, given: &BTreeMap<String, ParamValue>) -> Value {
    let mut all: BTreeMap<&String, &ParamValue> = pipeline.params.iter().collect();
    all.extend(given);
    let json = all.into_iter().map(|(name, value)| {
        let value = match value {
            ParamValue::Text(text) => Value::from(text.as_str()),
            ParamValue::Integer(number) => Value::from(*number),
            ParamValue::Float(number) => Value::from(*number),
            ParamValue::Boolean(value) => Value::from(*value),
        };
        (name.clone(), value)
    });
    Value::Object(json.collect())
}

/// `$today`, `$run_at` and the run's parameters, typed.
pub fn sql_params(run: &Run, pipeline: &Pipeline) -> Params {
    let stored: serde_json::Map<String, Value> = serde_json::from_str(&run.params).unwrap_or_default();
    let mut params = Params::new();
    for (name, value) in stored {
        let param = match (&value, pipeline.params.get(&name)) {
            (Value::Bool(value), _) => Param::Boolean(*value),
            (Value::Number(number), Some(ParamValue::Integer(_))) => {
                Param::Integer(number.as_i64().unwrap_or_default())
            }
            (Value::Number(number), _) => Param::Float(number.as_f64().unwrap_or_default()),
            (Value::String(text), _) => Param::Text(text.clone()),
            _ => continue,
        };
        params.insert(name, param);
    }
    params.insert("today".to_owned(), Param::Date(run.today));
    params.insert("run_at".to_owned(), Param::Timestamp(run.run_at));
    params
}
