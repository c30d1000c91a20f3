"""int8 with NNCF: calibrated on the user's images, and kept in higher precision wherever that is measured to cost."""



