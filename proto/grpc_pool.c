/* A buddy allocator (Knuth, TAOCP vol. 1, 2.5 C): blocks of 2^order pages; a block's buddy differs
 * in one bit of its page number, so a returned block merges with a buddy that is free too. */
#include "grpc_pool.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>

enum { PAGE_BYTES = 4096, ORDER_MAX = 11, NONE = UINT32_MAX }; /* largest block: 8 MiB */

/* One per page; `order` and `free` mean something at a block's first page. */
struct block {
    _Atomic(struct mn_reply_pool *) pool; /* while the block is a slice */
    uint32_t next, previous;              /* in the free list of its order */
    uint8_t order;
    bool free;
};

struct mn_reply_pool {
    mn_env env;
    pthread_mutex_t lock; /* guards all below: slices are dropped on gRPC's threads */
    uint8_t *region;
    struct block *blocks;
    uint32_t pages;
    uint32_t order_max;
    uint32_t free_lists[ORDER_MAX + 1];
    uint64_t used_bytes;
    bool orphan; /* destroyed, but gRPC still holds a buffer */
};

static void push_free(mn_reply_pool *pool, uint32_t page, uint32_t order)
{
    struct block *block = &pool->blocks[page];
    block->next = pool->free_lists[order];
    block->previous = NONE;
    block->order = (uint8_t)order;
    block->free = true;
    if (block->next != NONE)
        pool->blocks[block->next].previous = page;
    pool->free_lists[order] = page;
}

static void remove_free(mn_reply_pool *pool, uint32_t page)
{
    struct block *block = &pool->blocks[page];
    if (block->previous != NONE)
        pool->blocks[block->previous].next = block->next;
    else
        pool->free_lists[block->order] = block->next;
    if (block->next != NONE)
        pool->blocks[block->next].previous = block->previous;
    block->free = false;
}

static void release_pool(mn_reply_pool *pool)
{
    mn_env env = pool->env;
    env.unreserve(env.context, pool->region, (uint64_t)pool->pages * PAGE_BYTES);
    env.unreserve(env.context, pool->blocks, (uint64_t)pool->pages * sizeof(struct block));
    (void)pthread_mutex_destroy(&pool->lock); /* unlocked and known to nobody: cannot fail */
    env.release(env.context, pool, sizeof *pool);
}

mn_reply_pool *mn_reply_pool_create(const mn_env *env, uint64_t bytes_max)
{
    uint64_t pages = bytes_max / PAGE_BYTES;
    assert(pages > 0 && pages < NONE);
    mn_reply_pool *pool = env->allocate(env->context, sizeof *pool);
    if (!pool)
        return NULL;
    pool->env = *env;
    while (pool->order_max < ORDER_MAX && UINT64_C(2) << pool->order_max <= pages)
        pool->order_max++;
    pool->pages = (uint32_t)(pages >> pool->order_max << pool->order_max);
    pool->region = env->reserve(env->context, (uint64_t)pool->pages * PAGE_BYTES);
    if (!pool->region)
        goto release;
    pool->blocks = env->reserve(env->context, (uint64_t)pool->pages * sizeof(struct block));
    if (!pool->blocks)
        goto unreserve;
    if (pthread_mutex_init(&pool->lock, NULL))
        goto unreserve_blocks;
    env->promote(env->context, pool->region, (uint64_t)pool->pages * PAGE_BYTES);
    for (uint32_t order = 0; order <= ORDER_MAX; order++)
        pool->free_lists[order] = NONE;
    for (uint32_t page = pool->pages; page > 0; page -= UINT32_C(1) << pool->order_max)
        push_free(pool, page - (UINT32_C(1) << pool->order_max), pool->order_max);
    return pool;
unreserve_blocks:
    env->unreserve(env->context, pool->blocks, (uint64_t)pool->pages * sizeof(struct block));
unreserve:
    env->unreserve(env->context, pool->region, (uint64_t)pool->pages * PAGE_BYTES);
release:
    env->release(env->context, pool, sizeof *pool);
    return NULL;
}

void mn_reply_pool_destroy(mn_reply_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->orphan = true;
    bool last = pool->used_bytes == 0;
    pthread_mutex_unlock(&pool->lock);
    if (last)
        release_pool(pool);
}

/* The first page of a free block of this order, splitting a larger one; NONE when there is none. */
static uint32_t take_block(mn_reply_pool *pool, uint32_t order)
{
    uint32_t found = order;
    while (found <= pool->order_max && pool->free_lists[found] == NONE)
        found++;
    if (found > pool->order_max)
        return NONE;
    uint32_t page = pool->free_lists[found];
    remove_free(pool, page);
    while (found > order) {
        found--;
        push_free(pool, page + (UINT32_C(1) << found), found);
    }
    pool->blocks[page].order = (uint8_t)order;
    return page;
}

uint8_t *mn_reply_pool_take(mn_reply_pool *pool, uint64_t bytes)
{
    uint32_t order = 0;
    while (order <= ORDER_MAX && (uint64_t)PAGE_BYTES << order < bytes)
        order++;
    pthread_mutex_lock(&pool->lock);
    uint32_t page = take_block(pool, order);
    if (page != NONE)
        pool->used_bytes += (uint64_t)PAGE_BYTES << order;
    pthread_mutex_unlock(&pool->lock);
    return page == NONE ? NULL : pool->region + (uint64_t)page * PAGE_BYTES;
}

static void give_block(mn_reply_pool *pool, uint32_t page)
{
    uint32_t order = pool->blocks[page].order;
    assert(!pool->blocks[page].free);
    pool->used_bytes -= (uint64_t)PAGE_BYTES << order;
    for (; order < pool->order_max; order++) {
        uint32_t buddy = page ^ (UINT32_C(1) << order);
        if (!pool->blocks[buddy].free || pool->blocks[buddy].order != order)
            break;
        remove_free(pool, buddy);
        page &= ~(UINT32_C(1) << order);
    }
    push_free(pool, page, order);
}

void mn_reply_pool_give(mn_reply_pool *pool, uint8_t *buffer)
{
    pthread_mutex_lock(&pool->lock);
    give_block(pool, (uint32_t)((uint64_t)(buffer - pool->region) / PAGE_BYTES));
    bool last = pool->orphan && pool->used_bytes == 0;
    pthread_mutex_unlock(&pool->lock);
    if (last)
        release_pool(pool);
}

static void drop_slice(void *user_data)
{
    struct block *block = user_data;
    mn_reply_pool *pool = atomic_load(&block->pool);
    mn_reply_pool_give(pool, pool->region + (uint64_t)(block - pool->blocks) * PAGE_BYTES);
}

grpc_slice mn_reply_pool_slice(mn_reply_pool *pool, uint8_t *buffer, uint64_t bytes)
{
    struct block *block = &pool->blocks[(uint64_t)(buffer - pool->region) / PAGE_BYTES];
    atomic_store(&block->pool, pool);
    return grpc_slice_new_with_user_data(buffer, bytes, drop_slice, block);
}

uint64_t mn_reply_pool_used(mn_reply_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    uint64_t used = pool->used_bytes;
    pthread_mutex_unlock(&pool->lock);
    return used;
}
