module millrace/schemas

go 1.26
