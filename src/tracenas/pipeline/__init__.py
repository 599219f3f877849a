"""What commands share: space, session, calibration, scoring, refits, resuming. No command stands here."""
