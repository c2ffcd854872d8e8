//! A workbook opened, its sheet chosen, and the rows of it in their order. Only here is calamine known to be a reader of
//! files; what a cell means is for `value`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use calamine::{Data, DataRef, Reader as _, SheetType, SheetVisible, Xls, XlsError, Xlsx, XlsxError};

use super::Sheet;
use super::value::Cell;
use crate::exports::{ExportError, Input};

/// A workbook that unpacks to more than this is none that people work with; a sheet ends at a million rows.
const MAX_UNPACKED_BYTES: u64 = 4 << 30;

/// One sheet of a workbook.
pub(super) struct Book {
    file: PathBuf,
    sheet: String,
    kind: Kind,
}

enum Kind {
    Xlsx(Box<Xlsx<BufReader<File>>>),
    Xls(Box<Xls<BufReader<File>>>),
}

/// What a row of a sheet holds.
pub(super) struct Row<'a> {
    /// The first row of the sheet is 1.
    pub(super) number: u32,
    /// Columns from 0, in their order, with cells that are not empty.
    pub(super) cells: Vec<(u32, Cell<'a>)>,
}

/// Takes a row, and says whether it wants another.
pub(super) type EachRow<'a> = dyn FnMut(&Row<'_>) -> Result<ControlFlow<()>, ExportError> + 'a;

impl Book {
    /// Opens a workbook, whatever of both kinds its name says it is, and finds the sheet; left to itself the first that
    /// can be seen.
    pub(super) fn open(input: &Input, asked: Option<Sheet<'_>>) -> Result<Self, ExportError> {
        let path = input.shown();
        let mut file = input.unpacked(MAX_UNPACKED_BYTES)?;
        let kind = match begins(path, &mut file)? {
            [b'P', b'K', 3, 4] => {
                let file = refuse_giant(path, BufReader::new(file))?;
                Kind::Xlsx(Box::new(Xlsx::new(file).map_err(|fault| of_xlsx(path, fault))?))
            }
            [0xD0, 0xCF, 0x11, 0xE0] => {
                let beside = file.try_clone().map_err(|source| ExportError::Open { file: path.to_owned(), source })?;
                let book = Xls::new(BufReader::new(file));
                Kind::Xls(Box::new(book.map_err(|fault| {
                    if is_wrapped(beside) { ExportError::Locked { file: path.to_owned() } } else { of_xls(path, fault) }
                })?))
            }
            _ => {
                let holds = "neither an xlsx nor an xls workbook (a web page or text, perhaps)";
                let instead = "open it in a spreadsheet program and save it as xlsx or csv";
                return Err(ExportError::Mislabelled { file: path.to_owned(), holds, instead });
            }
        };
        let mut book = Self { file: path.to_owned(), sheet: String::new(), kind };
        book.sheet = book.choose(asked)?;
        Ok(book)
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The name of the sheet that is read.
    pub(super) fn sheet(&self) -> &str {
        &self.sheet
    }

    fn choose(&self, asked: Option<Sheet<'_>>) -> Result<String, ExportError> {
        let all = match &self.kind {
            Kind::Xlsx(book) => book.sheets_metadata(),
            Kind::Xls(book) => book.sheets_metadata(),
        };
        let mut sheets = all.iter().filter(|sheet| sheet.typ == SheetType::WorkSheet);
        let found = match asked {
            None => sheets.find(|sheet| sheet.visible == SheetVisible::Visible),
            Some(Sheet::Name(name)) => sheets.find(|sheet| sheet.name == name),
            Some(Sheet::Number(number)) => sheets.nth(usize::try_from(number).unwrap_or(usize::MAX).saturating_sub(1)),
        };
        found.map(|sheet| sheet.name.clone()).ok_or_else(|| ExportError::NoSheet {
            file: self.file.clone(),
            asked: match asked {
                None => "a sheet that is not hidden".to_owned(),
                Some(Sheet::Name(name)) => format!("a sheet {name:?}"),
                Some(Sheet::Number(number)) => format!("a sheet number {number}"),
            },
            sheets: all
                .iter()
                .filter(|sheet| sheet.typ == SheetType::WorkSheet)
                .map(|sheet| sheet.name.clone())
                .collect(),
        })
    }

    /// Gives every row that has cells.
    pub(super) fn each_row(&mut self, each: &mut EachRow<'_>) -> Result<(), ExportError> {
        match &mut self.kind {
            Kind::Xlsx(book) => rows_of_xlsx(book, &self.file, &self.sheet, each),
            Kind::Xls(book) => rows_of_xls(book, &self.file, &self.sheet, each),
        }
    }
}

fn rows_of_xlsx(
    book: &mut Xlsx<BufReader<File>>,
    file: &Path,
    sheet: &str,
    each: &mut EachRow<'_>,
) -> Result<(), ExportError> {
    let mut row = Row { number: 0, cells: Vec::new() };
    let broken = |fault: XlsxError, row: u32| ExportError::BrokenSheet {
        file: file.to_owned(),
        sheet: sheet.to_owned(),
        row,
        source: Box::new(fault),
    };
    let mut cells = book.worksheet_cells_reader(sheet).map_err(|fault| broken(fault, 0))?;
    loop {
        let cell = cells.next_cell().map_err(|fault| broken(fault, row.number))?;
        let number = cell.as_ref().map(|cell| cell.get_position().0 + 1);
        if number != Some(row.number) {
            if !row.cells.is_empty() {
                row.cells.sort_by_key(|(column, _)| *column);
                if each(&row)?.is_break() {
                    return Ok(());
                }
            }
            row.cells.clear();
        }
        let (Some(cell), Some(number)) = (cell, number) else { return Ok(()) };
        row.number = number;
        let column = cell.get_position().1;
        match cell.get_value() {
            DataRef::Empty | DataRef::SharedString("") => {}
            DataRef::String(text) if text.is_empty() => {}
            DataRef::SharedString(text) => row.cells.push((column, Cell::Shared(text))),
            value => row.cells.push((column, Cell::Own(value.clone().into()))),
        }
    }
}

fn rows_of_xls(
    book: &mut Xls<BufReader<File>>,
    file: &Path,
    sheet: &str,
    each: &mut EachRow<'_>,
) -> Result<(), ExportError> {
    let range = book.worksheet_range(sheet).map_err(|fault| of_xls(file, fault))?;
    let (first_row, first_column) = range.start().unwrap_or_default();
    for (cells, number) in range.rows().zip(first_row + 1..) {
        let is_full =
            |cell: &Data| !matches!(cell, Data::Empty) && !matches!(cell, Data::String(text) if text.is_empty());
        let cells = cells.iter().zip(first_column..).filter(|(cell, _)| is_full(cell));
        let row = Row { number, cells: cells.map(|(cell, column)| (column, Cell::Own(cell.clone()))).collect() };
        if !row.cells.is_empty() && each(&row)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn begins(path: &Path, file: &mut File) -> Result<[u8; 4], ExportError> {
    let failed = |source| ExportError::Open { file: path.to_owned(), source };
    let mut begins = [0; 4];
    match file.read_exact(&mut begins) {
        Ok(()) => {}
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => begins = [0; 4],
        Err(source) => return Err(failed(source)),
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(begins)
}

/// An xlsx is a zip, and some zips are made to fill whatever opens them.
fn refuse_giant(path: &Path, file: BufReader<File>) -> Result<BufReader<File>, ExportError> {
    let damaged =
        |source: zip::result::ZipError| ExportError::BrokenBook { file: path.to_owned(), source: Box::new(source) };
    let mut archive = zip::ZipArchive::new(file).map_err(damaged)?;
    let mut bytes = 0_u64;
    for number in 0..archive.len() {
        bytes = bytes.saturating_add(archive.by_index_raw(number).map_err(damaged)?.size());
    }
    if bytes > MAX_UNPACKED_BYTES {
        return Err(ExportError::TooLarge { file: path.to_owned(), most: MAX_UNPACKED_BYTES });
    }
    let mut file = archive.into_inner();
    file.seek(SeekFrom::Start(0)).map_err(|source| ExportError::Open { file: path.to_owned(), source })?;
    Ok(file)
}

fn of_xlsx(path: &Path, fault: XlsxError) -> ExportError {
    let file = path.to_owned();
    match fault {
        XlsxError::Password => ExportError::Locked { file },
        fault => ExportError::BrokenBook { file, source: Box::new(fault) },
    }
}

fn of_xls(path: &Path, fault: XlsError) -> ExportError {
    let file = path.to_owned();
    match fault {
        XlsError::Password => ExportError::Locked { file },
        fault => ExportError::BrokenBook { file, source: Box::new(fault) },
    }
}

/// A protected xlsx comes wrapped like an xls without a workbook in it.
fn is_wrapped(mut file: File) -> bool {
    const LOOKED_AT_BYTES: u64 = 64 << 20;
    let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bytes = Vec::new();
    let is_read = file.seek(SeekFrom::Start(0)).is_ok() && file.take(LOOKED_AT_BYTES).read_to_end(&mut bytes).is_ok();
    is_read && bytes.windows(name.len()).any(|window| window == name)
}
