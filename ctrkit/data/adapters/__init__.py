"""From the official raw files of public click logs to the flat log that ctrkit reads."""
