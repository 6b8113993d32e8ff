"""Storage, in six sentences.

queries.py reads sql/*.sql into named queries and refuses what breaks the rules of tenancy. scope.py is all that handlers
see: a tenant's view that adds the tenant to every query, and units of work, generators that yield queries and receive
rows. sqlite.py runs them: reads on connections that can only read, writes on one connection, the queued units of one
moment in one transaction with a savepoint each, answered after its commit. migrations.py brings a file to the version
that this code knows, and lock.py keeps a second server and a second writer away from it. backups.py copies a file
while it is written to and puts it back, and examination.py says what is wrong with it. Nothing outside knows SQLite.
"""
