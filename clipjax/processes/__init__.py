"""The processes of a run: how they start, find and hear one another, and how each of them ends.

launching.py starts them and starts a run again, clusters.py reads which launcher started this one,
distributed.py has them join and agree. signals.py hears a person or a service that asks to stop,
watchdog.py ends what makes no progress, peers.py has all end together. exit_codes.py and
exit_record.py say how a run ended; process_log.py and tracebacks.py what a person sees of it.
"""
