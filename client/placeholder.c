typedef int mn_client_placeholder; /* replaced by the first source of this folder */
