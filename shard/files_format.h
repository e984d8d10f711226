/* The shard's files: the field tables of their records (mn_proto.h, section 9).
 *
 *   tile file   tile_head, { chunk_head, body }*, end
 *   manifest    manifest_head, table_record [tables], tile_record [tiles], end
 *   part        part_head, tile_record [tiles], end: what one shard has of a manifest to come
 *   base        base_head, base_move, base_rank [ranks], base_commit [commits],
 *               base_drop [drops], { table_record, base_place } [tables],
 *               { base_reduce, body } [reduces], { base_request, body } [requests], end
 *   image       image_head, tile_record [tiles], end
 *
 * A chunk's body holds written rows among `rows` rows from `first` on: a bitmap [rows / 8, rounded
 * up], then their update counts u32, values and states, each array dense. Chunks come in any order;
 * each row is in one at most. */
#ifndef MN_SHARD_FILES_FORMAT_H
#define MN_SHARD_FILES_FORMAT_H

#include "mn_proto.h"

enum {
    FILE_FORMAT_VERSION = 1,
    FILE_READER_LEAST = 1,
    MANIFEST_VERSION = 3, /* of parts too, and their least reader: files are named by states */
    IMAGE_VERSION = 2,    /* likewise: it tells its tiles' states */
    BASE_VERSION = 2,     /* it tells where the tiles lie, and the moves of them */
    BASE_READER_LEAST = 4,
    FILE_READER_VERSION = 4
};
#define TILE_MAGIC     UINT64_C(0x0a656c69744d4e4d) /* "MNMtile\n" */
#define MANIFEST_MAGIC UINT64_C(0x0a696e616d4d4e4d) /* "MNMmani\n" */
#define PART_MAGIC     UINT64_C(0x0a747261704d4e4d) /* "MNMpart\n" */
#define END_MAGIC      UINT64_C(0x0a2e646e654d4e4d) /* "MNMend.\n" */

#define LOG_MAGIC        UINT64_C(0x0a2e676f6c4d4e4d) /* "MNMlog.\n" */
#define LOG_RECORD_MAGIC UINT32_C(0x4365524c)         /* "LReC" */
#define BASE_MAGIC       UINT64_C(0x0a657361624d4e4d) /* "MNMbase\n" */
#define IMAGE_MAGIC      UINT64_C(0x0a67616d694d4e4d) /* "MNMimag\n" */

#define TILE_HEAD_FIELDS(X)                                                                        \
    X(PREAMBLE, file)                                                                              \
    X(NAME, group)                                                                                 \
    X(U64, table)                                                                                  \
    X(U32, tile)                                                                                   \
    X(U64, step)                                                                                   \
    X(U64, rows)                                                                                   \
    X(U32, columns)                                                                                \
    X(U32, value_bytes)    /* of a row */                                                          \
    X(U32, state_bytes)    /* of a row */                                                          \
    X(U32, chunk_rows_max) /* rows that one chunk spans at most */

#define CHUNK_HEAD_FIELDS(X)                                                                       \
    X(U64, first)                                                                                  \
    X(U32, rows)                                                                                   \
    X(U32, written)                                                                                \
    X(U64, body_checksum)

#define MANIFEST_HEAD_FIELDS(X)                                                                    \
    X(PREAMBLE, file)                                                                              \
    X(NAME, group)                                                                                 \
    X(U64, step)                                                                                   \
    X(U64, map_epoch)                                                                              \
    X(U64, next_table)                                                                             \
    X(U32, ranks)                                                                                  \
    X(U32, tables)                                                                                 \
    X(U32, tiles)

#define TABLE_RECORD_FIELDS(X)                                                                     \
    X(U64, table)                                                                                  \
    X(SPEC, spec)

#define PART_HEAD_FIELDS(X)                                                                        \
    X(PREAMBLE, file)                                                                              \
    X(NAME, group)                                                                                 \
    X(U64, step)                                                                                   \
    X(U64, map_epoch)                                                                              \
    X(U32, shard)                                                                                  \
    X(U32, shards)                                                                                 \
    X(U32, tiles)                                                                                  \
    X(U64, save) /* which one: a number that its caller has drawn, or 0 */

/* Of a manifest of version 1: the file is of the manifest's own epoch and step. */
#define TILE_RECORD_1_FIELDS(X)                                                                    \
    X(U64, table)                                                                                  \
    X(U32, tile)                                                                                   \
    X(U64, bytes)                                                                                  \
    X(U64, rows_written)                                                                           \
    X(U64, checksum) /* of the tile file's end */

/* Of a manifest of version 2, and an image of version 1. */
#define TILE_RECORD_2_FIELDS(X)                                                                    \
    TILE_RECORD_1_FIELDS(X)                                                                        \
    X(U64, epoch) /* of the file: since its step the tile has not changed */                       \
    X(U64, step)

/* The tile's state (struct tile_state), which names its file in a snapshot; life 0: the file is of
 * version 2. */
#define TILE_RECORD_FIELDS(X)                                                                      \
    TILE_RECORD_2_FIELDS(X)                                                                        \
    X(U64, life)

/* Its own checksum starts from 0, so that it can be read alone; `chain` is that of the last record
 * before it. */
#define END_FIELDS(X)                                                                              \
    X(U64, magic)                                                                                  \
    X(U64, records) /* chunks; or tables + tiles */                                                \
    X(U64, rows_written)                                                                           \
    X(U64, bytes) /* of the file before this record */                                             \
    X(U64, chain)

/* LOG.md says how these are read. A record's checksum is seeded with that of its file's head, not
 * of the record before: one that is damaged does not hide those after it. Its body follows. */
#define LOG_HEAD_FIELDS(X)                                                                         \
    X(PREAMBLE, file)                                                                              \
    X(NAME, group)                                                                                 \
    X(U64, map_epoch)                                                                              \
    X(U64, number)     /* of the file, among those of the group and epoch, from 1 */               \
    X(U64, first)      /* sequence of its first record: earlier files count up to here */          \
    X(U32, durability) /* enum mn_durability */                                                    \
    X(U32, shard)                                                                                  \
    X(U32, shards)

#define LOG_RECORD_FIELDS(X)                                                                       \
    X(U32, magic)                                                                                  \
    X(U32, verb)                                                                                   \
    X(U64, sequence) /* from 1, without gaps */                                                    \
    X(U64, promised) /* up to here all was durable when this was written */                        \
    X(U64, body_bytes)                                                                             \
    X(U64, body_checksum)

/* An image (LOG.md): a group's state at this shard once its record `sequence`, a Commit, had taken
 * effect. The base is all of it but the tiles. */
#define BASE_HEAD_FIELDS(X)                                                                        \
    X(PREAMBLE, file)                                                                              \
    X(NAME, group)                                                                                 \
    X(U64, map_epoch)                                                                              \
    X(U64, sequence)                                                                               \
    X(U64, step)                                                                                   \
    X(U64, next_table)                                                                             \
    X(U64, loaded_digest)                                                                          \
    X(U32, durability)                                                                             \
    X(U32, shard)                                                                                  \
    X(U32, shards)                                                                                 \
    X(U32, ranks)                                                                                  \
    X(U32, commits)                                                                                \
    X(U32, drops)                                                                                  \
    X(U32, tables)                                                                                 \
    X(U64, reduces)                                                                                \
    X(U64, requests)

/* Since version 2. `number`: of a move that has been taken here and is not over; 0: there is none,
 * and the fields after it are 0. */
#define BASE_MOVE_FIELDS(X)                                                                        \
    X(U64, last) /* the highest that has ended here */                                             \
    X(U64, number)                                                                                 \
    X(U64, table)                                                                                  \
    X(U32, tile_first)                                                                             \
    X(U32, tile_count)                                                                             \
    X(U32, from)                                                                                   \
    X(U32, to)                                                                                     \
    X(U64, step)                                                                                   \
    X(U64, position)

/* Since version 2: of the table before it, the tiles held here and the last move of its tiles. */
#define BASE_PLACE_FIELDS(X)                                                                       \
    X(U32, tile_first)                                                                             \
    X(U32, tile_count)                                                                             \
    X(U64, moved)

#define BASE_RANK_FIELDS(X)                                                                        \
    X(U64, known) /* incarnation */                                                                \
    X(U64, assigned)

#define BASE_COMMIT_FIELDS(X)                                                                      \
    X(U64, step)                                                                                   \
    X(U64, digest)

#define BASE_DROP_FIELDS(X) X(U64, table)

/* Its body: of each rank whether it came, its checksum and incarnation, u64 each; then the sum f64,
 * or else the values of those that came. */
#define BASE_REDUCE_FIELDS(X)                                                                      \
    X(U64, step)                                                                                   \
    X(NAME, name)                                                                                  \
    X(U64, count)                                                                                  \
    X(U32, summed)                                                                                 \
    X(U64, body_bytes)                                                                             \
    X(U64, body_checksum)

/* Its body: a request as on the wire. The first is the last Commit, the others are the pieces of
 * the open steps. */
#define BASE_REQUEST_FIELDS(X)                                                                     \
    X(U32, verb)                                                                                   \
    X(U64, body_bytes)                                                                             \
    X(U64, body_checksum)

#define IMAGE_HEAD_FIELDS(X)                                                                       \
    X(PREAMBLE, file)                                                                              \
    X(NAME, group)                                                                                 \
    X(U64, map_epoch)                                                                              \
    X(U64, sequence)                                                                               \
    X(U64, step)                                                                                   \
    X(U64, number) /* the newest log file when this was written: it or a later one must stand */   \
    X(U32, shard)                                                                                  \
    X(U32, shards)                                                                                 \
    X(U32, tiles)                                                                                  \
    X(U64, bytes)         /* of the base and the tile files */                                     \
    X(U64, base_bytes)    /* of the base */                                                        \
    X(U64, base_checksum) /* of the base's last record */

#define RECORD_LIST(X)                                                                             \
    X(tile_head, TILE_HEAD_FIELDS)                                                                 \
    X(chunk_head, CHUNK_HEAD_FIELDS)                                                               \
    X(manifest_head, MANIFEST_HEAD_FIELDS)                                                         \
    X(table_record, TABLE_RECORD_FIELDS)                                                           \
    X(part_head, PART_HEAD_FIELDS)                                                                 \
    X(tile_record_1, TILE_RECORD_1_FIELDS)                                                         \
    X(tile_record_2, TILE_RECORD_2_FIELDS)                                                         \
    X(tile_record, TILE_RECORD_FIELDS)                                                             \
    X(log_head, LOG_HEAD_FIELDS)                                                                   \
    X(log_record, LOG_RECORD_FIELDS)                                                               \
    X(base_head, BASE_HEAD_FIELDS)                                                                 \
    X(base_move, BASE_MOVE_FIELDS)                                                                 \
    X(base_rank, BASE_RANK_FIELDS)                                                                 \
    X(base_place, BASE_PLACE_FIELDS)                                                               \
    X(base_commit, BASE_COMMIT_FIELDS)                                                             \
    X(base_drop, BASE_DROP_FIELDS)                                                                 \
    X(base_reduce, BASE_REDUCE_FIELDS)                                                             \
    X(base_request, BASE_REQUEST_FIELDS)                                                           \
    X(image_head, IMAGE_HEAD_FIELDS)                                                               \
    X(end, END_FIELDS)

RECORD_LIST(MN_FILE_RECORD_DECLARE)

enum { FILE_RECORD_BYTES_MAX = 256 };

/* Magic, version and endianness of a file's first record. */
enum mn_status mn_shard_check_preamble(const char *path, const mn_file_PREAMBLE *file,
                                       uint64_t magic_due, mn_error *error);

/* Body bytes of a chunk. */
uint64_t mn_shard_chunk_bytes(const struct file_tile_head *head, uint64_t rows, uint64_t written);

#endif
