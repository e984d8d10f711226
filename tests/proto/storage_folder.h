/* Storage in a folder of its own, made for a test program and removed after it. */
#ifndef STORAGE_FOLDER_H
#define STORAGE_FOLDER_H

#include "proto_test.h"

#include <stdio.h>
#include <stdlib.h>

static char root[64];
static mn_storage *storage;

static int begin(void **state)
{
    (void)state;
    strcpy(root, "/tmp/mneme-storage-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    return mn_storage_uv_create(root, &storage, NULL);
}

static int end(void **state)
{
    (void)state;
    char command[100];
    mn_storage_uv_destroy(storage);
    (void)snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

#endif
