"""Sources that plugins bring: records from anywhere, in units that can be read by themselves."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from llmkit.config import entries, schema
from llmkit.data.sources.extract import NO_FIELD, NO_OBJECT, Extracted, Extractor, extras_of, fields_of
from llmkit.data.sources.records import Skipped
from llmkit.errors import RunFault, UserError
from llmkit.registry import find

SCHEME = "custom://"
"""Begins the paths that stand for units, in messages and fingerprints."""
UNIT_SIZE = 1 << 20


class DataSource:
    """Base class of registered sources. Its objects are sent to other processes: they must be picklable.

    A record is a text, or a mapping with the fields that `record` and `text_field` etc. of the settings
    name. The same unit must always give the same records, in the same order.
    """

    def units(self) -> Sequence[str]:
        """Names of the units, in the source's order, the same on all ranks."""
        raise NotImplementedError(f"{type(self).__name__} has no units()")

    def read(self, unit: str, first: int) -> Iterator[str | Mapping[str, Any]]:
        """The records `first`, `first` + 1, ... of a unit."""
        raise NotImplementedError(f"{type(self).__name__} has no read(unit, first)")

    def fingerprint(self, unit: str) -> str:
        """What changes if the content of a unit does; a run that goes on compares it."""
        return ""

    def size(self, unit: str) -> int:
        """About how many bytes a unit's records have, for the balance of processes; at least 1."""
        return UNIT_SIZE


class CustomSpec(schema.Source):
    """The settings of a registered source, with the source itself."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    type: str  # type: ignore[assignment]
    """The name that it is registered under."""
    settings: dict[str, Any]
    """Those that are its own."""
    source: DataSource = Field(exclude=True)
    """Reads it."""

    def path_of(self, unit: str) -> str:
        """Stands for a unit where others have the path of a file."""
        return f"{SCHEME}{self.type}/{unit}"

    def sized_units(self, setting: str) -> list[tuple[str, int, str]]:
        """Path, size and fingerprint of each unit; setting: key of the source's settings.

        Raises UserError where there is none, or two have the same name, and RunFault where the source fails.
        """
        source = self.source
        with _faults_of(f"{setting}: the source {self.type} cannot be opened"):
            units = [str(unit) for unit in source.units()]
            facts = [(max(1, int(source.size(unit))), str(source.fingerprint(unit))) for unit in units]
        if not units or len(set(units)) < len(units):
            wrong = "has units of the same name" if units else "has no units, so there is nothing to read"
            raise UserError(f"{setting}: the source {self.type} {wrong}")
        return [(self.path_of(unit), *each) for unit, each in zip(units, facts, strict=True)]

    def extract(self, path: str, first: int, extractor: Extractor) -> Iterator[Extracted]:
        """The records of a unit from number `first` on. Raises RunFault, which names it, where that fails."""
        unit = path.removeprefix(self.path_of(""))
        with _faults_of(f"{path}: cannot be read"):
            for record in self.source.read(unit, first):
                yield self._one(record, extractor)

    def _one(self, record: object, extractor: Extractor) -> Extracted:
        fields = list(fields_of(self).values())
        if isinstance(record, str) and self.record == "text":
            return extractor.from_values((record,))
        if not isinstance(record, Mapping):
            what = f"the record is {type(record).__name__}, not a mapping of fields"
            return Skipped(NO_OBJECT, what), False
        if missing := [field for field in fields if field not in record]:
            return Skipped(NO_FIELD, f"the record has no field {missing[0]!r}"), False
        return extractor.from_values((*map(record.get, fields), *map(record.get, extras_of(self))))


@contextlib.contextmanager
def _faults_of(what: str) -> Iterator[None]:
    """An exception of a plugin becomes a RunFault that begins with `what`."""
    try:
        yield
    except (UserError, RunFault):
        raise
    except Exception as error:
        raise RunFault(f"{what} ({type(error).__name__}: {error})") from error


def custom_spec(spec: schema.Source) -> schema.Source:
    """The settings as the data room takes them: those of a registered source with the source made."""
    component = find("source", spec.type)
    if component is None or isinstance(spec, CustomSpec):
        return spec
    own = entries.own_settings(spec, component)
    source = component.make(own) if component.settings else component.make()
    if not isinstance(source, DataSource):
        raise UserError(f"{component.origin} is registered as a source, but is no llmkit.DataSource")
    try:
        pickle.dumps(source)
    except Exception as error:
        raise UserError(
            f"{component.origin} cannot be sent to other processes ({type(error).__name__}: {error}); define "
            "it in a module, and open files and connections in its methods"
        ) from error
    common = {name: getattr(spec, name) for name in schema.Source.model_fields}
    return CustomSpec(**common, settings=own.model_dump(mode="json"), source=source)
