//! Rows out of a session: streamed in batches, in the few types of [`Rows`].

use duckdb::arrow::array::{
    Array, AsArray, BooleanArray, Date32Array, Float64Array, Int64Array, StructArray, TimestampMicrosecondArray,
};
use duckdb::arrow::datatypes::{DataType, TimeUnit};

use super::{EngineError, Params, Session, quoted};
use crate::domain::{Rows, Values};

impl Session {
    /// Runs `sql` and hands its rows to `sink` batch by batch (about 2 000 rows each), never holding more than a few.
    ///
    /// Types that [`Values`] does not know (decimals, lists, big unsigned numbers) arrive as text, exactly as DuckDB prints
    /// them. `sink` stops the query by returning `Ok(false)`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`], or what `sink` returns.
    pub fn stream<E: From<EngineError>>(
        &self,
        sql: &str,
        params: &Params,
        sink: impl FnMut(Rows) -> Result<bool, E>,
    ) -> Result<(), E> {
        let columns = self.bind(sql, params)?;
        self.stream_bound((sql, &columns), params, sink)
    }

    /// The same where the columns that `sql` gives are known: binding it opens every part of its tables once more.
    ///
    /// # Errors
    ///
    /// As [`stream`](Self::stream).
    pub fn stream_bound<E: From<EngineError>>(
        &self,
        (sql, columns): (&str, &[(String, String)]),
        params: &Params,
        mut sink: impl FnMut(Rows) -> Result<bool, E>,
    ) -> Result<(), E> {
        // By place, not by name: two columns of a SELECT may have one name.
        let inner: Vec<String> = (1..=columns.len()).map(|place| format!("_{place}")).collect();
        let casts: Vec<String> = columns
            .iter()
            .zip(&inner)
            .map(|((name, ty), inner)| match target_type(ty) {
                Some(target) => format!("cast({inner} as {target}) as {}", quoted(name)),
                None => format!("{inner} as {}", quoted(name)),
            })
            .collect();
        let select = sql.trim_end().trim_end_matches(';');
        let wrapped = format!("select {} from (\n{select}\n) as _rows({})", casts.join(", "), inner.join(", "));
        let in_sql = |error: &duckdb::Error| EngineError::in_sql(error, sql, 1);
        let mut statement = self.connection.prepare(&wrapped).map_err(|error| in_sql(&error))?;
        let values = parameter_values(&statement, sql, params)?;
        drop(statement.stream_arrow(duckdb::params_from_iter(values)).map_err(|error| in_sql(&error))?);
        while let Some(batch) = statement.step().map_err(|error| in_sql(&error))? {
            if !sink(rows_of(&batch, columns)?)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// All rows of a SELECT that is known to be small.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn query(&self, sql: &str, params: &Params) -> Result<Rows, EngineError> {
        let mut all: Option<Rows> = None;
        self.stream::<EngineError>(sql, params, |rows| {
            match &mut all {
                None => all = Some(rows),
                Some(all) => append(all, rows),
            }
            Ok(true)
        })?;
        match all {
            Some(rows) => Ok(rows),
            None => {
                let columns = self.bind(sql, params)?;
                Ok(Rows { columns: columns.into_iter().map(|(name, ty)| (name, empty_values(&ty))).collect() })
            }
        }
    }
}

fn parameter_values(
    statement: &duckdb::Statement<'_>,
    sql: &str,
    params: &Params,
) -> Result<Vec<duckdb::types::Value>, EngineError> {
    (1..=statement.parameter_count())
        .map(|index| {
            let name = statement.parameter_name(index).map_err(|error| EngineError::in_sql(&error, sql, 1))?;
            let param = params.get(&name).ok_or(EngineError::UnknownParameter { name })?;
            Ok(param.value())
        })
        .collect()
}

/// What a DuckDB type is cast to on the way out; `None`: it is read as it is.
fn target_type(ty: &str) -> Option<&'static str> {
    match ty {
        "VARCHAR" | "BIGINT" | "DOUBLE" | "BOOLEAN" | "TIMESTAMP" | "DATE" => None,
        "TINYINT" | "SMALLINT" | "INTEGER" | "UTINYINT" | "USMALLINT" | "UINTEGER" => Some("BIGINT"),
        "FLOAT" => Some("DOUBLE"),
        "TIMESTAMP_S" | "TIMESTAMP_MS" | "TIMESTAMP_NS" | "TIMESTAMP WITH TIME ZONE" => Some("TIMESTAMP"),
        _ => Some("VARCHAR"),
    }
}

fn empty_values(ty: &str) -> Values {
    match target_type(ty).unwrap_or(ty) {
        "BIGINT" => Values::Integer(Vec::new()),
        "DOUBLE" => Values::Float(Vec::new()),
        "BOOLEAN" => Values::Boolean(Vec::new()),
        "TIMESTAMP" => Values::Timestamp(Vec::new()),
        "DATE" => Values::Date(Vec::new()),
        _ => Values::Text(Vec::new()),
    }
}

fn rows_of(batch: &StructArray, columns: &[(String, String)]) -> Result<Rows, EngineError> {
    let columns = batch
        .columns()
        .iter()
        .zip(columns)
        .map(|(array, (name, _))| Ok((name.clone(), values_of(array.as_ref())?)))
        .collect::<Result<_, EngineError>>()?;
    Ok(Rows { columns })
}

fn values_of(array: &dyn Array) -> Result<Values, EngineError> {
    let unread = || EngineError::ColumnType { found: array.data_type().to_string() };
    Ok(match array.data_type() {
        DataType::Utf8 => Values::Text(array.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect()),
        DataType::LargeUtf8 => {
            Values::Text(array.as_string::<i64>().iter().map(|value| value.map(str::to_owned)).collect())
        }
        DataType::Utf8View => {
            Values::Text(array.as_string_view().iter().map(|value| value.map(str::to_owned)).collect())
        }
        DataType::Int64 => {
            Values::Integer(array.as_any().downcast_ref::<Int64Array>().ok_or_else(unread)?.iter().collect())
        }
        DataType::Float64 => {
            Values::Float(array.as_any().downcast_ref::<Float64Array>().ok_or_else(unread)?.iter().collect())
        }
        DataType::Boolean => {
            Values::Boolean(array.as_any().downcast_ref::<BooleanArray>().ok_or_else(unread)?.iter().collect())
        }
        DataType::Date32 => {
            Values::Date(array.as_any().downcast_ref::<Date32Array>().ok_or_else(unread)?.iter().collect())
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => Values::Timestamp(
            array.as_any().downcast_ref::<TimestampMicrosecondArray>().ok_or_else(unread)?.iter().collect(),
        ),
        _ => return Err(unread()),
    })
}

fn append(all: &mut Rows, more: Rows) {
    for ((_, values), (_, extra)) in all.columns.iter_mut().zip(more.columns) {
        match (values, extra) {
            (Values::Text(values), Values::Text(extra)) => values.extend(extra),
            (Values::Integer(values), Values::Integer(extra))
            | (Values::Timestamp(values), Values::Timestamp(extra)) => values.extend(extra),
            (Values::Float(values), Values::Float(extra)) => values.extend(extra),
            (Values::Boolean(values), Values::Boolean(extra)) => values.extend(extra),
            (Values::Date(values), Values::Date(extra)) => values.extend(extra),
            _ => unreachable!("every batch of a query has the same columns"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    #[test]
    fn two_columns_of_one_name_keep_their_own_values() {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::UTC).session().unwrap();
        let rows = session.query("select 1 as a, 2 as a, cast(3 as tinyint) as b order by 1", &Params::new()).unwrap();
        let column = |name: &str, number| (name.to_owned(), Values::Integer(vec![Some(number)]));
        assert_eq!(rows.columns, [column("a", 1), column("a", 2), column("b", 3)]);
    }
}
