"""Language: encoding rows, scoring them, generating answers, judging results."""
