typedef int mn_shard_placeholder; /* replaced by the first source of this folder */
