typedef int mn_trainer_placeholder; /* replaced by the first source of this folder */
