/* Frozen groups: the files, and what is open of them. Private to the folder.
 *
 * A frozen group is a folder: one file NAME.frozen for each table, and `manifest.frozen`, written
 * last, which names them with their sizes and checksums. Records as in mn_proto.h, section 9.
 *
 *   table file   frozen_table, zeros up to FROZEN_PAGE_BYTES, rows (mn_frozen_rows) 0 .. rows - 1
 *   manifest     frozen_manifest, frozen_entry [tables]
 *
 * Every row is there, also one that training never wrote: a reader looks nothing up. */
#ifndef MN_FROZEN_H
#define MN_FROZEN_H

#include "mn_kernels.h"
#include "mn_proto.h"
#include "mneme.h"

enum {
    FROZEN_FORMAT_VERSION = 1,
    FROZEN_READER_LEAST = 1,
    FROZEN_PAGE_BYTES = 4096,
    FROZEN_PIECE_BYTES = 4 << 20, /* whole rows of at most so many bytes are checksummed at once */
    FROZEN_NAME_BYTES = MN_NAME_BYTES + 8 /* NAME.frozen */
};
#define FROZEN_TABLE_MAGIC    UINT64_C(0x0a7a72666c544e4d) /* "MNTlfrz\n" */
#define FROZEN_MANIFEST_MAGIC UINT64_C(0x0a7a72666d4d4e4d) /* "MNMmfrz\n" */

/* Every file begins with these. */
#define FROZEN_PREAMBLE_FIELDS(X)                                                                  \
    X(PREAMBLE, file)                                                                              \
    X(U64, step)

#define FROZEN_TABLE_FIELDS(X)                                                                     \
    FROZEN_PREAMBLE_FIELDS(X)                                                                      \
    X(U32, row_dtype) /* of the rows here; the spec is of the table that was trained */            \
    X(U64, row_bytes)                                                                              \
    X(SPEC, spec)

#define FROZEN_MANIFEST_FIELDS(X)                                                                  \
    FROZEN_PREAMBLE_FIELDS(X)                                                                      \
    X(U32, tables)

#define FROZEN_ENTRY_FIELDS(X)                                                                     \
    X(NAME, name)                                                                                  \
    X(U64, bytes)         /* of the table file */                                                  \
    X(U64, head_checksum) /* the one that ends its frozen_table */                                 \
    X(U64, checksum)      /* of all its bytes */

#define FROZEN_RECORD_LIST(X)                                                                      \
    X(frozen_table, FROZEN_TABLE_FIELDS)                                                           \
    X(frozen_manifest, FROZEN_MANIFEST_FIELDS)                                                     \
    X(frozen_entry, FROZEN_ENTRY_FIELDS)

FROZEN_RECORD_LIST(MN_FILE_RECORD_DECLARE)

enum {
    FROZEN_MANIFEST_BYTES_MAX =
        FILE_BYTES_frozen_manifest + MN_COMMIT_TABLES_MAX * FILE_BYTES_frozen_entry
};

static const char mn_frozen_manifest_name[] = "manifest.frozen";
void mn_frozen_file_name(const char *table, char out_name[FROZEN_NAME_BYTES]);

/* The checksum of a table file is chained from its first page on over pieces of so many bytes. */
uint64_t mn_frozen_piece_bytes(uint64_t row_bytes);

/* A manifest, verified. */
struct frozen_contents {
    struct file_frozen_manifest head;
    struct file_frozen_entry entries[MN_COMMIT_TABLES_MAX]; /* [head.tables] */
};

/* `file` is for errors. MN_CORRUPT, MN_UNSUPPORTED (a version to come). */
enum mn_status mn_frozen_contents_decode(const char *file, const uint8_t *bytes, uint64_t count,
                                         struct frozen_contents *out_contents, mn_error *error);

struct mn_frozen_table {
    mn_table_spec spec;
    mn_frozen_rows rows;
    const mn_frozen_kernels *kernels;
    void *file; /* mapped: [file_bytes] */
    uint64_t file_bytes;
};

/* Checks a table file of `count` bytes, in place, against what the manifest says of it, and aims
 * the table at its rows; `rows_too`: their checksum, not only the head's. */
enum mn_status mn_frozen_table_init(const char *file, const uint8_t *bytes, uint64_t count,
                                    const struct frozen_contents *contents, uint32_t entry,
                                    bool rows_too, mn_frozen_table *out_table, mn_error *error);

/* mn_freeze into a folder that stands (frozen_write.c). */
enum mn_status mn_frozen_write(mn_client *client, mn_storage *storage,
                               const mn_freeze_options *options, mn_error *error);

struct mn_frozen {
    uint64_t step;
    uint32_t table_count;
    mn_frozen_table tables[MN_COMMIT_TABLES_MAX];
};

#endif
