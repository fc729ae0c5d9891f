"""Files as Spark sees them, on whatever file system Hadoop knows: list, read, first line.

A call into the JVM costs tenths of a millisecond and each class named by its package five of them, so classes are
looked up once and a listing comes back as one text: the headers of a year's files take a second.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

# Deflate, and so gzip, makes at most so many bytes of one (zlib's documentation, "Maximum Compression Factor").
DEFLATE = 1032


class Files:
    """Hadoop's file systems of one Spark session."""

    def __init__(self, spark: SparkSession) -> None:
        jvm: Any = spark._jvm
        self._settings: Any = spark._jsc.hadoopConfiguration()  # type: ignore[attr-defined]
        self._path = jvm.org.apache.hadoop.fs.Path
        self._spark = jvm.org.apache.spark.deploy.SparkHadoopUtil.get()
        self._text_of = jvm.org.apache.commons.io.IOUtils.toString
        self._lines_of, self._characters_of = jvm.java.io.BufferedReader, jvm.java.io.InputStreamReader
        self._charset = jvm.java.nio.charset.Charset
        self._report = jvm.java.nio.charset.CodingErrorAction.REPORT
        self._consume = jvm.org.apache.commons.io.IOUtils.consume
        self._bounded = jvm.org.apache.commons.io.input.BoundedInputStream
        self._codecs = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(self._settings)

    def glob(self, pattern: str) -> list[str]:
        """The paths that match a pattern of Hadoop's (`*`, `?`, `[]`, `{a,b}`), sorted."""
        return sorted(self._spark.globPath(self._path(pattern)).mkString("\n").splitlines())

    def names(self, folder: str, below: int = 0) -> list[str]:
        """The names in a folder, or in the folders so many steps below it; none where there is no such folder."""
        literal = re.sub(r"([*?\[\]{}\\])", r"\\\1", folder)
        return [name.rsplit("/", 1)[1] for name in self.glob(literal + "/*" * (below + 1))]

    def usage(self, folder: str) -> tuple[int, int]:
        """How many files a folder has, those of its folders included, and their bytes; (0, 0) where there is none."""
        path, system = self._at(folder)
        if not system.exists(path):
            return 0, 0
        summary = system.getContentSummary(path)
        return int(summary.getFileCount()), int(summary.getLength())

    def modified(self, file: str) -> int:
        """When a file was last written, in milliseconds since 1970."""
        path, system = self._at(file)
        return int(system.getFileStatus(path).getModificationTime())

    def text(self, file: str) -> str:
        """A whole file as UTF-8."""
        path, system = self._at(file)
        stream = system.open(path)
        try:
            return str(self._text_of(stream, "UTF-8"))
        finally:
            stream.close()

    def write(self, file: str, text: str) -> None:
        """Write a whole file as UTF-8, in the place of one that is there."""
        path, system = self._at(file)
        stream = system.create(path, True)
        try:
            stream.write(bytearray(text, "utf-8"))
        finally:
            stream.close()

    def first_line(self, file: str, encoding: str) -> str | None:
        """The first line of a file that is not blank, decompressed by what its name says; None where there is none."""
        path, system = self._at(file)
        stream, codec = system.open(path), self._codecs.getCodec(path)
        try:
            if codec is not None and system.getFileStatus(path).getLen() > 0:
                stream = codec.createInputStream(stream)
            lines = self._lines_of(self._characters_of(stream, encoding))
            line: str | None = lines.readLine()
            while line is not None and not line.strip():
                line = lines.readLine()
            return line
        finally:
            stream.close()

    def decodes(self, file: str, encoding: str) -> bool:
        """Whether every byte of a file, decompressed by what its name says, is of the encoding."""
        path, system = self._at(file)
        stream, codec = system.open(path), self._codecs.getCodec(path)
        strict = self._charset.forName(encoding).newDecoder().onMalformedInput(self._report)
        try:
            source = codec.createInputStream(stream) if codec is not None else stream
            self._consume(self._characters_of(source, strict.onUnmappableCharacter(self._report)))
        except Py4JJavaError as error:
            if "CharacterCodingException" in str(error) or "MalformedInput" in str(error) or "Unmappable" in str(error):
                return False
            raise
        finally:
            stream.close()
        return True

    def holds_more(self, file: str, limit: int) -> bool:
        """Whether a file has more than `limit` bytes once it is decompressed.

        A gzip file that is too small to have is not read; another compressed one is, as far as the limit.
        """
        path, system = self._at(file)
        size, codec = int(system.getFileStatus(path).getLen()), self._codecs.getCodec(path)
        if codec is None or size > limit:
            return size > limit
        bounded = codec.getDefaultExtension() in (".gz", ".deflate") and size * DEFLATE <= limit
        if not size or bounded:
            return False
        stream = system.open(path)
        try:
            return int(self._consume(self._bounded(codec.createInputStream(stream), limit + 1))) > limit
        finally:
            stream.close()

    def _at(self, place: str) -> tuple[Any, Any]:
        path = self._path(place)
        return path, path.getFileSystem(self._settings)


@cache
def files(spark: SparkSession) -> Files:
    """The files of a session."""
    return Files(spark)
